//! How many of the questions each leaf of the taxonomy gets: weights, quotas and caps of nodes of any level.
//!
//! Without quotas and caps a leaf's weight is the product of the weights along its path. Where they are, the whole is divided
//! from above: siblings share in proportion to their weights as far as everybody's bounds let them (water-filling), where a
//! node's bounds include those of the nodes below it.

use super::taxonomy::{Share, Taxonomy};
use crate::config::Balance;

/// A node on its way to a share.
struct Node<'a> {
    name: &'a str,
    share: Share,
    /// Sum over its leaves.
    weight: f64,
    /// Least and most of the whole.
    bounds: (f64, f64),
    children: Vec<Node<'a>>,
}

/// What rounding may make of a sum.
const SLACK: f64 = 1e-9;

/// The weight of every leaf in the order of the file; only their proportions count. `balance` says nodes of which
/// level are even where all weights are 1.
///
/// **Errors**: quotas or caps that cannot hold together, in words.
pub fn leaf_weights(taxonomy: &Taxonomy, balance: Balance) -> Result<Vec<f64>, String> {
    let mut nodes = tree(taxonomy, balance);
    let mut weights = Vec::new();
    if !nodes.iter().any(is_bounded) {
        nodes.iter().for_each(|node| leaves(node, &mut weights));
        return Ok(weights);
    }
    nodes.iter_mut().try_for_each(bound)?;
    divide(&nodes, 1.0, "the taxonomy", &mut weights)?;
    Ok(weights)
}

fn tree(taxonomy: &Taxonomy, balance: Balance) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    for field in &taxonomy.fields {
        let of_subfield =
            |index: usize| field.subfields[index].disciplines.iter().map(|leaf| leaf.share.weight).sum::<f64>();
        let of_field: f64 =
            (0..field.subfields.len()).map(|index| field.subfields[index].share.weight * of_subfield(index)).sum();
        let mut subfields = Vec::new();
        for (index, subfield) in field.subfields.iter().enumerate() {
            let even = match balance {
                Balance::Discipline => 1.0,
                Balance::Subfield => of_subfield(index),
                Balance::Field => of_field,
            };
            let above = field.share.weight * subfield.share.weight;
            let leaf = |name, share: Share| Node {
                name,
                share,
                weight: above * share.weight / even,
                bounds: (0.0, 1.0),
                children: Vec::new(),
            };
            let leaves: Vec<Node> =
                subfield.disciplines.iter().map(|node| leaf(node.name.as_str(), node.share)).collect();
            subfields.push(parent(&subfield.name, subfield.share, leaves));
        }
        nodes.push(parent(&field.name, field.share, subfields));
    }
    nodes
}

fn parent<'a>(name: &'a str, share: Share, children: Vec<Node<'a>>) -> Node<'a> {
    let weight = children.iter().map(|child| child.weight).sum();
    Node { name, share, weight, bounds: (0.0, 1.0), children }
}

fn is_bounded(node: &Node) -> bool {
    node.share.quota > 0.0 || node.share.cap < 1.0 || node.children.iter().any(is_bounded)
}

fn leaves(node: &Node, weights: &mut Vec<f64>) {
    if node.children.is_empty() {
        weights.push(node.weight);
    }
    node.children.iter().for_each(|child| leaves(child, weights));
}

/// Sets the bounds of a node and of all below it.
fn bound(node: &mut Node) -> Result<(), String> {
    node.children.iter_mut().try_for_each(bound)?;
    let sum = |of: fn(&Node) -> f64| node.children.iter().map(of).sum::<f64>();
    let (least, most) = if node.children.is_empty() {
        (0.0, node.share.cap)
    } else {
        (sum(|child| child.bounds.0), sum(|child| child.bounds.1).min(node.share.cap))
    };
    let quota = node.share.quota;
    if quota > 0.0 && quota > most + SLACK {
        return Err(format!("quota {quota} of `{}` is over the cap of it or those below it, {most}", node.name));
    }
    let wanted = if quota > 0.0 { quota } else { most };
    if least > wanted + SLACK {
        return Err(format!(
            "quotas below `{}` sum up to {least}, more than the {wanted} that it gets itself",
            node.name
        ));
    }
    node.bounds = if quota > 0.0 { (quota, quota) } else { (least, most) };
    Ok(())
}

/// Divides `amount` of the whole among siblings and on to their leaves.
fn divide(nodes: &[Node], amount: f64, name: &str, weights: &mut Vec<f64>) -> Result<(), String> {
    let sum = |of: fn(&Node) -> f64| nodes.iter().map(of).sum::<f64>();
    let (least, most) = (sum(|node| node.bounds.0), sum(|node| node.bounds.1));
    if least > amount + SLACK || most < amount - SLACK {
        let (what, reached) =
            if least > amount { ("quotas ask for", least) } else { ("caps and quotas leave room for", most) };
        return Err(format!("{what} {reached:.4} of the questions below {name}, which gets {amount:.4}"));
    }
    let at = |level: f64| nodes.iter().map(move |node| (level * node.weight).max(node.bounds.0).min(node.bounds.1));
    // The level at which the parts sum up: found by halving, the same on every machine.
    let (mut low, mut high) = (0.0, nodes.iter().map(|node| 1.0 / node.weight).fold(0.0, f64::max));
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if at(middle).sum::<f64>() < amount { low = middle } else { high = middle }
    }
    for (node, part) in nodes.iter().zip(at(high)) {
        if part < SLACK {
            return Err(format!("quotas leave nothing for `{}`; remove it or lower them", node.name));
        }
        if node.children.is_empty() {
            weights.push(part);
        } else {
            divide(&node.children, part, &format!("`{}`", node.name), weights)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two fields: A with sub-fields of three leaves and one, B with one leaf.
    fn taxonomy(edit: impl Fn(&mut Taxonomy)) -> Taxonomy {
        let leaves = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut taxonomy = Taxonomy::from_names(vec![
            ("A".into(), vec![("a".into(), leaves(&["1", "2", "3"])), ("b".into(), leaves(&["4"]))]),
            ("B".into(), vec![("c".into(), leaves(&["5"]))]),
        ])
        .expect("well-formed");
        edit(&mut taxonomy);
        taxonomy
    }

    #[track_caller]
    fn assert_shares(taxonomy: &Taxonomy, balance: Balance, expected: [f64; 5]) {
        let weights = leaf_weights(taxonomy, balance).expect("the bounds can hold");
        let (sum, whole): (f64, f64) = (weights.iter().sum(), expected.iter().sum());
        for (weight, expected) in weights.iter().zip(expected) {
            assert!((weight / sum - expected / whole).abs() < 1e-9, "{weights:?}");
        }
    }

    #[test]
    fn weights_of_a_path_multiply_and_any_level_can_be_even() {
        let plain = taxonomy(|_| {});
        assert_eq!(leaf_weights(&plain, Balance::Discipline), Ok(vec![1.0; 5]));
        assert_shares(&plain, Balance::Subfield, [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0, 1.0]);
        assert_shares(&plain, Balance::Field, [0.25, 0.25, 0.25, 0.25, 1.0]);
        let weighted = taxonomy(|taxonomy| {
            taxonomy.fields[0].share.weight = 2.0;
            taxonomy.fields[0].subfields[0].share.weight = 3.0;
            taxonomy.fields[0].subfields[0].disciplines[0].share.weight = 0.5;
        });
        assert_shares(&weighted, Balance::Discipline, [3.0, 6.0, 6.0, 2.0, 1.0]);
        // The field of weight 2 gets two thirds, whatever stands in it.
        assert_shares(&weighted, Balance::Field, [3.0 / 8.5, 6.0 / 8.5, 6.0 / 8.5, 2.0 / 8.5, 1.0]);
    }

    #[test]
    fn quotas_are_exact_caps_are_kept_and_the_rest_is_shared_by_weight() {
        let quota = taxonomy(|taxonomy| taxonomy.fields[1].share.quota = 0.6);
        assert_shares(&quota, Balance::Discipline, [0.1, 0.1, 0.1, 0.1, 0.6]);
        let cap = taxonomy(|taxonomy| taxonomy.fields[0].subfields[0].share.cap = 0.3);
        // What a capped node leaves goes to its siblings.
        assert_shares(&cap, Balance::Discipline, [0.1, 0.1, 0.1, 0.5, 0.2]);
        // A quota below holds up the nodes above it.
        let below = taxonomy(|taxonomy| {
            taxonomy.fields[1].subfields[0].disciplines[0].share.quota = 0.9;
            taxonomy.fields[0].subfields[0].disciplines[0].share.cap = 0.01;
        });
        assert_shares(&below, Balance::Discipline, [0.01, 0.0325, 0.0325, 0.025, 0.9]);
    }

    #[test]
    fn bounds_that_cannot_hold_are_named() {
        type Edit = fn(&mut Taxonomy);
        let edits: [(Edit, &str); 5] = [
            (|taxonomy| taxonomy.fields.iter_mut().for_each(|field| field.share.quota = 0.6), "quotas ask for 1.2"),
            (|taxonomy| taxonomy.fields.iter_mut().for_each(|field| field.share.cap = 0.3), "room for 0.6"),
            (
                |taxonomy| {
                    taxonomy.fields[0].share.quota = 0.2;
                    taxonomy.fields[0].subfields[1].share.quota = 0.3;
                },
                "below `A`",
            ),
            (
                |taxonomy| {
                    taxonomy.fields[1].share.quota = 0.5;
                    taxonomy.fields[1].subfields[0].disciplines[0].share.cap = 0.4;
                },
                "quota 0.5 of `B`",
            ),
            (|taxonomy| taxonomy.fields[1].share.quota = 1.0, "nothing for `A`"),
        ];
        for (edit, said) in edits {
            let error = leaf_weights(&taxonomy(edit), Balance::Discipline).expect_err(said);
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
