//! The taxonomy as a TOML file: read with its faults named, extended by another one, and written again for people to edit.

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Deserialize;

use super::{
    shares,
    taxonomy::{DisciplineNode, Field, Share, Subfield, Taxonomy},
    text::normalized_name,
};
use crate::{config::Balance, error::usage, seed::record_id};

/// A field by names: its sub-fields, and their disciplines.
pub type NamedField = (String, Vec<(String, Vec<String>)>);

impl Taxonomy {
    /// Reads and checks a taxonomy file.
    ///
    /// **Errors**: usage, naming the file and the place in it: unreadable, not TOML, unknown keys, empty names or
    /// lists, weights, quotas and caps out of range or at odds, and a name twice under one parent (the same discipline in two
    /// sub-fields is allowed).
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_extended(path, &[])
    }

    /// Reads a taxonomy file and adds the branches of others to it: nodes of the same name are one, and where the later file
    /// gives it a weight, quota or cap, that one holds.
    ///
    /// **Errors**: those of [`Taxonomy::load`], for every file.
    pub fn load_extended(path: &Path, extensions: &[PathBuf]) -> Result<Self> {
        let mut raw = RawTaxonomy::read(path)?;
        let mut shown = path.display().to_string();
        for extension in extensions {
            // What is wrong with a file is said of that file, not of the sum.
            let more = RawTaxonomy::read(extension)?;
            more.clone().check().map_err(|problem| usage(format!("taxonomy `{}`: {problem}", extension.display())))?;
            raw.merge(more);
            shown += &format!("` with `{}", extension.display());
        }
        raw.check().map_err(|problem| usage(format!("taxonomy `{shown}`: {problem}")))
    }

    /// A taxonomy of names alone.
    ///
    /// **Errors**: the first fault, in words.
    pub fn from_names(fields: Vec<NamedField>) -> Result<Self, String> {
        let subfield = |(name, leaves): (String, Vec<String>)| {
            let disciplines = leaves.into_iter().map(|name| RawDiscipline { name, share: RawShare::default() });
            RawSubfield { name, share: RawShare::default(), disciplines: disciplines.collect() }
        };
        let fields = fields.into_iter().map(|(name, subfields)| RawField {
            name,
            share: RawShare::default(),
            subfields: subfields.into_iter().map(subfield).collect(),
        });
        RawTaxonomy { fields: fields.collect() }.check()
    }

    /// The file that reads back as this taxonomy. Each line of `head` becomes a comment.
    pub fn to_toml(&self, head: &str) -> String {
        let mut text: String = head.lines().map(|line| format!("# {line}\n").replace("# \n", "#\n")).collect();
        for field in &self.fields {
            let _ = write!(text, "\n[[fields]]\nname = {}\n{}", quoted(&field.name), keys(&field.share, "\n"));
            for subfield in &field.subfields {
                let name = quoted(&subfield.name);
                let _ = write!(text, "\n[[fields.subfields]]\nname = {name}\n{}", keys(&subfield.share, "\n"));
                text += "disciplines = [\n";
                for leaf in &subfield.disciplines {
                    let more = keys(&leaf.share, ", ");
                    let name = quoted(&leaf.name);
                    let _ = match more.strip_suffix(", ") {
                        Some(more) => writeln!(text, "    {{ name = {name}, {more} }},"),
                        None => writeln!(text, "    {name},"),
                    };
                }
                text += "]\n";
            }
        }
        text
    }
}

fn quoted(name: &str) -> String {
    toml::Value::String(name.to_owned()).to_string()
}

/// The keys of a share that say something, each with `end` behind it.
fn keys(share: &Share, end: &str) -> String {
    let default = Share::default();
    [("weight", share.weight, default.weight), ("quota", share.quota, default.quota), ("cap", share.cap, default.cap)]
        .into_iter()
        .filter(|(_, value, default)| value != default)
        .map(|(key, value, _)| format!("{key} = {}{end}", toml::Value::Float(value)))
        .collect()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTaxonomy {
    fields: Vec<RawField>,
}

#[derive(Debug, Clone)]
struct RawField {
    name: String,
    share: RawShare,
    subfields: Vec<RawSubfield>,
}

#[derive(Debug, Clone)]
struct RawSubfield {
    name: String,
    share: RawShare,
    disciplines: Vec<RawDiscipline>,
}

#[derive(Debug, Clone)]
struct RawDiscipline {
    name: String,
    share: RawShare,
}

/// What a file says of a node's share; what it does not say may come from another file.
#[derive(Debug, Clone, Copy, Default)]
struct RawShare {
    weight: Option<f64>,
    quota: Option<f64>,
    cap: Option<f64>,
}

/// The tables as they stand in the file: serde cannot both flatten a table and refuse keys that do not exist.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldTable {
    name: String,
    weight: Option<f64>,
    quota: Option<f64>,
    cap: Option<f64>,
    subfields: Vec<RawSubfield>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubfieldTable {
    name: String,
    weight: Option<f64>,
    quota: Option<f64>,
    cap: Option<f64>,
    disciplines: Vec<RawDiscipline>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a discipline: a string, or a table such as { name = \"Physics\" }")]
enum LeafValue {
    Name(String),
    Table(LeafTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafTable {
    name: String,
    weight: Option<f64>,
    quota: Option<f64>,
    cap: Option<f64>,
}

impl<'de> Deserialize<'de> for RawField {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let FieldTable { name, weight, quota, cap, subfields } = FieldTable::deserialize(deserializer)?;
        Ok(Self { name, share: RawShare { weight, quota, cap }, subfields })
    }
}

impl<'de> Deserialize<'de> for RawSubfield {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let SubfieldTable { name, weight, quota, cap, disciplines } = SubfieldTable::deserialize(deserializer)?;
        Ok(Self { name, share: RawShare { weight, quota, cap }, disciplines })
    }
}

impl<'de> Deserialize<'de> for RawDiscipline {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match LeafValue::deserialize(deserializer)? {
            LeafValue::Name(name) => Self { name, share: RawShare::default() },
            LeafValue::Table(LeafTable { name, weight, quota, cap }) => {
                Self { name, share: RawShare { weight, quota, cap } }
            }
        })
    }
}

impl RawShare {
    fn merge(&mut self, other: Self) {
        self.weight = other.weight.or(self.weight);
        self.quota = other.quota.or(self.quota);
        self.cap = other.cap.or(self.cap);
    }

    fn check(self, name: &str) -> Result<Share, String> {
        let default = Share::default();
        let share = Share {
            weight: self.weight.unwrap_or(default.weight),
            quota: self.quota.unwrap_or(default.quota),
            cap: self.cap.unwrap_or(default.cap),
        };
        let (weight, quota, cap) = (share.weight, share.quota, share.cap);
        if !(weight.is_finite() && weight > 0.0) {
            return Err(format!("`{name}` has the weight {weight}, but it must be above 0"));
        }
        if !(0.0..=1.0).contains(&quota) {
            return Err(format!("`{name}` has the quota {quota}, but it must be a share of all questions, 0 to 1"));
        }
        if !(cap > 0.0 && cap <= 1.0) {
            return Err(format!(
                "`{name}` has the cap {cap}, but it must be a share of all questions, above 0 and at most 1"
            ));
        }
        Ok(share)
    }
}

impl RawTaxonomy {
    fn read(path: &Path) -> Result<Self> {
        let source = std::fs::read_to_string(path).map_err(|error| {
            usage(format!("cannot read the taxonomy `{}`: {error}; set `generate.taxonomy`", path.display()))
        })?;
        if source.trim().is_empty() {
            return Err(usage(format!(
                "the taxonomy `{}` is empty; expected [[fields]] with name, [[fields.subfields]] with name and \
                 disciplines, as in configs/taxonomy.toml",
                path.display()
            )));
        }
        toml::from_str(&source).map_err(|error| {
            usage(format!(
                "taxonomy `{}` is not as expected ([[fields]] with name, [[fields.subfields]] with name and \
                 disciplines): {}",
                path.display(),
                error.to_string().trim_end()
            ))
        })
    }

    /// Adds the nodes of another taxonomy, those of one name under one parent being the same.
    fn merge(&mut self, other: Self) {
        for field in other.fields {
            let Some(known) = find(&mut self.fields, &field.name, |field| &field.name) else {
                self.fields.push(field);
                continue;
            };
            known.share.merge(field.share);
            for subfield in field.subfields {
                let Some(known) = find(&mut known.subfields, &subfield.name, |subfield| &subfield.name) else {
                    known.subfields.push(subfield);
                    continue;
                };
                known.share.merge(subfield.share);
                for leaf in subfield.disciplines {
                    match find(&mut known.disciplines, &leaf.name, |leaf| &leaf.name) {
                        Some(known) => known.share.merge(leaf.share),
                        None => known.disciplines.push(leaf),
                    }
                }
            }
        }
    }

    fn check(self) -> Result<Taxonomy, String> {
        let names: Vec<String> = self.fields.iter().map(|field| field.name.clone()).collect();
        check_names("field", "the taxonomy", &names)?;
        let mut fields = Vec::with_capacity(self.fields.len());
        for field in self.fields {
            let name = field.name.trim().to_owned();
            let id = record_id(&["field", &name]);
            let place = format!("field `{name}`");
            let names: Vec<String> = field.subfields.iter().map(|subfield| subfield.name.clone()).collect();
            check_names("sub-field", &place, &names)?;
            let share = field.share.check(&name)?;
            let subfields = field.subfields.into_iter().map(|subfield| subfield.check(&id, &place));
            fields.push(Field { subfields: subfields.collect::<Result<_, _>>()?, id, name, share });
        }
        let taxonomy = Taxonomy { fields };
        // Quotas and caps hold or do not hold whatever is even.
        shares::leaf_weights(&taxonomy, Balance::Discipline)?;
        Ok(taxonomy)
    }
}

impl RawSubfield {
    fn check(self, parent: &str, place: &str) -> Result<Subfield, String> {
        let name = self.name.trim().to_owned();
        let id = record_id(&["subfield", parent, &name]);
        let names: Vec<String> = self.disciplines.iter().map(|leaf| leaf.name.clone()).collect();
        check_names("discipline", &format!("{place}, sub-field `{name}`"), &names)?;
        let share = self.share.check(&name)?;
        let leaf = |leaf: RawDiscipline| -> Result<DisciplineNode, String> {
            let name = leaf.name.trim().to_owned();
            let share = leaf.share.check(&name)?;
            Ok(DisciplineNode { id: record_id(&["discipline", &id, &name]), parent: id.clone(), name, share })
        };
        let disciplines = self.disciplines.into_iter().map(leaf).collect::<Result<_, _>>()?;
        Ok(Subfield { disciplines, parent: parent.to_owned(), id: id.clone(), name, share })
    }
}

/// The node of a name, in any spelling.
fn find<'a, T>(nodes: &'a mut [T], name: &str, name_of: impl Fn(&T) -> &str) -> Option<&'a mut T> {
    let key = normalized_name(name);
    nodes.iter_mut().find(|node| normalized_name(name_of(node)) == key)
}

/// Children of one node: at least one, none empty, none twice.
fn check_names(what: &str, place: &str, names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err(format!("{place} has no {what}; give it at least one or remove it"));
    }
    let mut seen = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let key = normalized_name(name);
        if key.is_empty() {
            return Err(format!("{place}: {what} number {} has an empty name", index + 1));
        }
        if let Some(first) = seen.insert(key, index) {
            return Err(format!(
                "{place} names the {what} `{}` twice (numbers {} and {}); remove one",
                name.trim(),
                first + 1,
                index + 1
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, source: &str, folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, source).expect("written");
        path
    }

    const BASE: &str = "[[fields]]\nname = \"Science\"\nweight = 2\n[[fields.subfields]]\nname = \"Nature\"\n\
        disciplines = [\"Physics\", { name = \"Bio \\\"logy\\\"\", weight = 0.5, cap = 0.4 }]\n";

    #[test]
    fn what_is_written_reads_back_as_it_was() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let taxonomy = Taxonomy::load(&load("a.toml", BASE, &folder))?;
        let text = taxonomy.to_toml("Reviewed.\n\nremoved: X");
        assert!(text.starts_with("# Reviewed.\n#\n# removed: X\n"), "{text}");
        assert_eq!(Taxonomy::load(&load("b.toml", &text, &folder))?, taxonomy);
        Ok(())
    }

    #[test]
    fn a_branch_of_the_user_s_is_added_to_the_nodes_that_are_there() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let base = load("base.toml", BASE, &folder);
        let own = "[[fields]]\nname = \"science\"\n[[fields.subfields]]\nname = \"Nature\"\n\
                   disciplines = [{ name = \"physics\", weight = 3 }, \"Optics\"]\n\
                   [[fields.subfields]]\nname = \"Our machines\"\ndisciplines = [\"Pumps\"]\n\
                   [[fields]]\nname = \"Company\"\n[[fields.subfields]]\nname = \"Rules\"\ndisciplines = [\"Safety\"]\n";
        let taxonomy = Taxonomy::load_extended(&base, &[load("own.toml", own, &folder)])?;
        let leaves = taxonomy.disciplines(Balance::Discipline)?;
        let paths: Vec<String> = leaves
            .iter()
            .map(|leaf| format!("{}/{}/{} {}", leaf.field, leaf.subfield, leaf.name, leaf.weight))
            .collect();
        // The first spelling stays, the later weight holds; a cap of 0.4 does not bind at 0.5 of 2 * 3 + 1 + 3 parts.
        let share = |parts: f64| parts / 12.0;
        assert_eq!(paths.len(), 5);
        assert!(
            paths[0].starts_with("Science/Nature/Physics") && paths[2].starts_with("Science/Nature/Optics"),
            "{paths:?}"
        );
        assert!(paths[3].starts_with("Science/Our machines/Pumps") && paths[4].starts_with("Company/Rules/Safety"));
        for (leaf, parts) in leaves.iter().zip([6.0, 1.0, 2.0, 2.0, 1.0]) {
            assert!((leaf.weight - share(parts)).abs() < 1e-9, "{paths:?}");
        }
        let faulty = load("faulty.toml", "[[fields]]\nname = \"X\"\nsubfields = []\n", &folder);
        let error = Taxonomy::load_extended(&base, &[faulty]).expect_err("a field without sub-fields");
        assert!(error.to_string().contains("faulty.toml"), "{error}");
        Ok(())
    }

    #[test]
    fn shares_out_of_range_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for (key, said) in [
            ("weight = -1", "the weight -1"),
            ("quota = 1.5", "the quota 1.5"),
            ("cap = 0", "the cap 0"),
            ("quota = 0.5\ncap = 0.3", "quota"),
        ] {
            let source = format!(
                "[[fields]]\nname = \"A\"\n{key}\n[[fields.subfields]]\nname = \"B\"\ndisciplines = [\"C\"]\n\
                 [[fields]]\nname = \"D\"\n[[fields.subfields]]\nname = \"E\"\ndisciplines = [\"F\"]\n"
            );
            let error = Taxonomy::load(&load("t.toml", &source, &folder)).expect_err(key);
            assert!(error.to_string().contains(said) && error.to_string().contains("t.toml"), "{key}: {error}");
        }
    }
}
