//! `glan taxonomy review`: keep/remove votes of several people or models on every node, decided by majority (section 3.1).
//!
//! People vote in a ballot, a text file with a line per node; models are asked once per node. Removing a field or sub-field
//! removes what is below it. The paper names neither the number of voters nor their agreement; both are part of the
//! result here: raw agreement, and Fleiss' kappa, which takes off what chance alone would agree on.

use std::{collections::HashMap, fmt::Write as _, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    prompts::{PromptKind, Prompts},
    taxonomy::Taxonomy,
    text::normalized_name,
};
use crate::{
    error::usage,
    language_model::{Constraint, LanguageModel, Prompt, Request, SamplingParams},
};

/// A vote on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    /// It stays.
    Keep,
    /// It goes, with all below it.
    Remove,
}

/// The nodes that are voted on, in the order of the file, each by its path of names.
#[derive(Debug, Clone, PartialEq)]
pub struct Ballot {
    nodes: Vec<Vec<String>>,
}

/// Somebody's votes, one per node; `None` is no vote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Voter {
    /// The file or the model.
    pub name: String,
    /// In the order of the ballot.
    pub votes: Vec<Option<Vote>>,
}

/// What came of a vote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Review {
    /// Who voted.
    pub voters: Vec<String>,
    /// Nodes voted on, those of all levels.
    pub nodes: usize,
    /// Leaves before and after.
    pub disciplines: (usize, usize),
    /// Nodes that the majority removes, with the votes for keeping and removing them.
    pub removed: Vec<Decided>,
    /// Nodes that are kept although as many would remove them.
    pub ties: usize,
    /// Mean share of the pairs of votes on a node that are the same; `null` where no node has two votes.
    pub raw_agreement: Option<f64>,
    /// Fleiss' kappa: 1 is full agreement, 0 what chance gives; `null` where all votes are the same.
    pub fleiss_kappa: Option<f64>,
}

/// A node with its votes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decided {
    /// Names from the field down.
    pub path: String,
    /// Votes to keep it.
    pub keep: usize,
    /// Votes to remove it.
    pub remove: usize,
}

impl Ballot {
    /// Every field, sub-field and discipline.
    pub fn new(taxonomy: &Taxonomy) -> Self {
        let mut nodes = Vec::new();
        for field in &taxonomy.fields {
            nodes.push(vec![field.name.clone()]);
            for subfield in &field.subfields {
                nodes.push(vec![field.name.clone(), subfield.name.clone()]);
                let path = |leaf: &String| vec![field.name.clone(), subfield.name.clone(), leaf.clone()];
                nodes.extend(subfield.disciplines.iter().map(|leaf| path(&leaf.name)));
            }
        }
        Self { nodes }
    }

    /// The file for one person to fill in.
    pub fn to_text(&self) -> String {
        let mut text = "# One vote a line: write `keep` or `remove` in place of `?`, or leave it where you cannot say.\n\
                        # Keep what names a real area of knowledge or skill and stands in the right place; remove what does not,\n\
                        # and what says the same as a node beside it. Removing a field or sub-field removes all below it.\n"
            .to_owned();
        for node in &self.nodes {
            let _ = writeln!(text, "?\t{}", node.join(" > "));
        }
        text
    }

    /// Reads a filled-in file; lines may be in any order, and missing ones are no vote.
    ///
    /// **Errors**: usage, with file and line: no vote, an unknown node, two votes on one.
    pub fn read(&self, path: &Path) -> Result<Voter> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            usage(format!(
                "cannot read the votes `{shown}`: {error}; `glan taxonomy review --ballot FILE` makes an empty one"
            ))
        })?;
        let places: HashMap<Vec<String>, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (key(node.iter()), place)).collect();
        let mut votes = vec![None; self.nodes.len()];
        let mut seen = vec![false; self.nodes.len()];
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (word, node) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let vote = match word.to_lowercase().as_str() {
                "keep" => Some(Vote::Keep),
                "remove" => Some(Vote::Remove),
                "?" => None,
                _ => {
                    return Err(usage(format!(
                        "`{shown}` line {number}: `{word}` is no vote; write keep, remove or ?"
                    )));
                }
            };
            let Some(&place) = places.get(&key(node.split('>'))) else {
                return Err(usage(format!("`{shown}` line {number}: the taxonomy has no node `{}`", node.trim())));
            };
            if std::mem::replace(&mut seen[place], true) {
                return Err(usage(format!("`{shown}` line {number}: a second vote on `{}`; remove one", node.trim())));
            }
            votes[place] = vote;
        }
        Ok(Voter { name: shown.to_string(), votes })
    }

    /// Asks a model for its votes, greedily; a node that it cannot be asked about has none. `prompts` is a folder of templates
    /// (empty: the built-in one).
    ///
    /// **Errors**: faults of the template, and those of the model.
    pub fn ask(&self, model: &mut dyn LanguageModel, prompts: &Path) -> Result<Voter> {
        let prompts = Prompts::of(prompts, &[PromptKind::TaxonomyReview])?;
        let mut requests = Vec::with_capacity(self.nodes.len());
        for (place, node) in self.nodes.iter().enumerate() {
            let (name, above) = node.split_last().expect("a path has at least one name");
            let kind = ["field", "sub-field", "discipline"][above.len()];
            let variables = json!({
                "kind": kind,
                "name": name,
                "above": above,
                "below": self.children(node),
                "siblings": self.children(above).into_iter().filter(|sibling| sibling != name).collect::<Vec<_>>(),
            });
            requests.push(Request {
                id: place.to_string(),
                prompt: Prompt::Messages(prompts.messages(PromptKind::TaxonomyReview, &variables)?),
                sampling: SamplingParams {
                    max_new_tokens: 8,
                    constraint: Some(Constraint::Choice(vec!["keep".into(), "remove".into()])),
                    ..SamplingParams::default()
                },
            });
        }
        let mut votes = vec![None; self.nodes.len()];
        model.generate(&mut requests.into_iter(), &mut |completion| {
            let place = completion.id.parse::<usize>().ok().filter(|place| *place < votes.len());
            if let Some(place) = place {
                votes[place] = match completion.text.trim() {
                    "keep" => Some(Vote::Keep),
                    "remove" => Some(Vote::Remove),
                    _ => None,
                };
            }
            Ok(())
        })?;
        Ok(Voter { name: model.identity().name.clone(), votes })
    }

    fn children(&self, above: &[String]) -> Vec<String> {
        let is_child = |node: &&Vec<String>| node.len() == above.len() + 1 && node.starts_with(above);
        self.nodes.iter().filter(is_child).map(|node| node[above.len()].clone()).collect()
    }

    /// Counts the votes: what most would remove goes, with what is below it and with nodes that have nothing left below
    /// them. Returns what remains, and how it came about.
    ///
    /// **Errors**: usage, when nothing remains or nobody voted.
    pub fn decide(&self, taxonomy: &Taxonomy, voters: &[Voter]) -> Result<(Taxonomy, Review)> {
        let count = |place: usize, vote| voters.iter().filter(|voter| voter.votes[place] == Some(vote)).count();
        let counts: Vec<(usize, usize)> =
            (0..self.nodes.len()).map(|place| (count(place, Vote::Keep), count(place, Vote::Remove))).collect();
        if counts.iter().all(|(keep, remove)| keep + remove == 0) {
            return Err(usage(
                "there is no vote to count: give --votes FILE or --model DIR, each as often as there are voters",
            ));
        }
        let removed: Vec<Decided> = (self.nodes.iter().zip(&counts))
            .filter(|(_, (keep, remove))| remove > keep)
            .map(|(node, &(keep, remove))| Decided { path: node.join(" > "), keep, remove })
            .collect();
        let is_kept = |node: &[&String]| {
            let path = node.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" > ");
            !removed.iter().any(|removed| removed.path == path)
        };
        let mut kept = taxonomy.clone();
        kept.fields.retain_mut(|field| {
            let name = field.name.clone();
            field.subfields.retain_mut(|subfield| {
                let subname = subfield.name.clone();
                subfield.disciplines.retain(|leaf| is_kept(&[&name, &subname, &leaf.name]));
                !subfield.disciplines.is_empty() && is_kept(&[&name, &subname])
            });
            !field.subfields.is_empty() && is_kept(&[&name])
        });
        if kept.fields.is_empty() {
            return Err(usage("the majority removes every node; nothing is written"));
        }
        let leaves = |taxonomy: &Taxonomy| {
            taxonomy.fields.iter().flat_map(|field| &field.subfields).map(|subfield| subfield.disciplines.len()).sum()
        };
        let (raw_agreement, fleiss_kappa) = agreement(&counts);
        let review = Review {
            voters: voters.iter().map(|voter| voter.name.clone()).collect(),
            nodes: self.nodes.len(),
            disciplines: (leaves(taxonomy), leaves(&kept)),
            ties: counts.iter().filter(|(keep, remove)| keep == remove && *keep > 0).count(),
            removed,
            raw_agreement,
            fleiss_kappa,
        };
        Ok((kept, review))
    }
}

impl Review {
    /// The head of the reviewed file.
    pub fn head(&self) -> String {
        let mut head = format!("Reviewed by {}: {}\n{}", self.voters.len(), self.voters.join(", "), self.sentence());
        if !self.removed.is_empty() {
            head += "\nRemoved, with the votes to keep and to remove:";
        }
        for removed in &self.removed {
            let _ = write!(head, "\n  {} ({} : {})", removed.path, removed.keep, removed.remove);
        }
        head
    }

    /// In words.
    pub fn sentence(&self) -> String {
        let shown = |value: Option<f64>| value.map_or("undefined".to_owned(), |value| format!("{value:.3}"));
        format!(
            "{} of {} disciplines are kept; {} of {} nodes removed by majority, {} ties kept; raw agreement {}, Fleiss' kappa {}",
            self.disciplines.1,
            self.disciplines.0,
            self.removed.len(),
            self.nodes,
            self.ties,
            shown(self.raw_agreement),
            shown(self.fleiss_kappa)
        )
    }
}

fn key<S: AsRef<str>>(names: impl Iterator<Item = S>) -> Vec<String> {
    names.map(|name| normalized_name(name.as_ref())).collect()
}

/// Raw agreement and Fleiss' kappa of votes `(keep, remove)`, over the nodes with at least two votes. Numbers of votes may
/// differ from node to node: each node's agreement is that of its own pairs, as in Fleiss (1971) where they do not.
fn agreement(counts: &[(usize, usize)]) -> (Option<f64>, Option<f64>) {
    let nodes: Vec<(f64, f64)> = counts
        .iter()
        .filter(|(keep, remove)| keep + remove >= 2)
        .map(|&(keep, remove)| (keep as f64, remove as f64))
        .collect();
    if nodes.is_empty() {
        return (None, None);
    }
    let same = |(keep, remove): &(f64, f64)| {
        let votes = keep + remove;
        (keep * (keep - 1.0) + remove * (remove - 1.0)) / (votes * (votes - 1.0))
    };
    let observed = nodes.iter().map(same).sum::<f64>() / nodes.len() as f64;
    let (keep, all) = nodes.iter().fold((0.0, 0.0), |(keep, all), node| (keep + node.0, all + node.0 + node.1));
    let share = keep / all;
    let by_chance = share * share + (1.0 - share) * (1.0 - share);
    let kappa = (by_chance < 1.0).then(|| (observed - by_chance) / (1.0 - by_chance));
    (Some(observed), kappa)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{
        error::exit_code,
        generate::scripted::{Reply, Scripted, last_turn},
    };

    fn taxonomy() -> Taxonomy {
        let leaves = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Taxonomy::from_names(vec![
            ("A".into(), vec![("a".into(), leaves(&["1", "2"])), ("b".into(), leaves(&["3"]))]),
            ("B".into(), vec![("c".into(), leaves(&["4"]))]),
        ])
        .expect("well-formed")
    }

    #[test]
    fn agreement_is_fleiss_s() {
        // Ten subjects, fourteen raters, five categories is Fleiss's own table; of two categories: 3 raters, 4 nodes.
        let (raw, kappa) = agreement(&[(3, 0), (2, 1), (0, 3), (1, 2)]);
        // P = (1 + 1/3 + 1 + 1/3) / 4 = 2/3; p = 1/2, so P_e = 1/2 and kappa = 1/3.
        assert!((raw.expect("votes") - 2.0 / 3.0).abs() < 1e-12 && (kappa.expect("varied") - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(agreement(&[(1, 1), (1, 1)]), (Some(0.0), Some(-1.0)));
        assert_eq!(agreement(&[(3, 0), (3, 0)]), (Some(1.0), None));
        assert_eq!(agreement(&[(1, 0), (0, 1)]), (None, None));
    }

    #[test]
    fn the_majority_decides_and_a_removed_node_takes_all_below_it() -> Result<()> {
        let (folder, taxonomy) = (tempfile::tempdir()?, taxonomy());
        let ballot = Ballot::new(&taxonomy);
        let voter = |name: &str, votes: &[(&str, &str)]| -> Result<Voter> {
            let mut text = ballot.to_text();
            assert_eq!(text.lines().filter(|line| line.starts_with("?\t")).count(), 9);
            for (path, vote) in votes {
                let (from, to) = (format!("?\t{path}\n"), format!("{vote}  {path}\n"));
                assert!(text.contains(&from), "{path}");
                text = text.replace(&from, &to);
            }
            let path = folder.path().join(name);
            std::fs::write(&path, text)?;
            ballot.read(&path)
        };
        let voters = [
            voter("one", &[("A", "keep"), ("A > a", "remove"), ("B > c > 4", "remove"), ("A > b > 3", "Remove")])?,
            voter("two", &[("A", "keep"), ("A > a", "remove"), ("B > c > 4", "keep"), ("A > a > 1", "keep")])?,
            voter("three", &[("A", "keep"), ("A > a", "keep")])?,
        ];
        let (kept, review) = ballot.decide(&taxonomy, &voters[..])?;
        // A > a fell two to one, A > b lost its only leaf, and the tie on 4 is kept. So A is empty and goes.
        assert_eq!(kept.fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>(), ["B"]);
        let removed: Vec<_> =
            review.removed.iter().map(|removed| (removed.path.as_str(), removed.keep, removed.remove)).collect();
        assert_eq!(removed, [("A > a", 1, 2), ("A > b > 3", 0, 1)]);
        assert_eq!((review.ties, review.disciplines), (1, (4, 1)));
        assert!(review.head().contains("  A > a (1 : 2)"));
        assert!(ballot.decide(&taxonomy, &[]).is_err(), "nobody voted");
        for (line, said) in
            [("maybe\tA", "line 1: `maybe`"), ("keep\tZ", "no node `Z`"), ("keep\tA\nkeep a", "line 2: a second")]
        {
            let path = folder.path().join("faulty");
            std::fs::write(&path, line)?;
            let error = ballot.read(&path).expect_err(said);
            assert!(exit_code(&error) == 2 && error.to_string().contains(said), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_model_votes_on_every_node_and_sees_what_stands_around_it() -> Result<()> {
        let taxonomy = taxonomy();
        let ballot = Ballot::new(&taxonomy);
        let script = |request: &Request| {
            let text = last_turn(request);
            if text.contains("sub-field \"a\", in A") {
                assert!(text.contains("It holds: 1; 2.") && text.contains("Beside it stand: b."), "{text}");
                return Reply::Failed("no".into());
            }
            Reply::Text(if text.contains("discipline \"4\", in B > c") { "remove" } else { "keep" }.into())
        };
        let mut model = Scripted::new(Rc::new(script), 3);
        let voter = ballot.ask(&mut model, Path::new(""))?;
        let of = |path: &[&str]| voter.votes[ballot.nodes.iter().position(|node| node == path).expect("a node")];
        assert_eq!(
            (of(&["A", "a"]), of(&["B", "c", "4"]), of(&["B", "c"])),
            (None, Some(Vote::Remove), Some(Vote::Keep))
        );
        Ok(())
    }
}
