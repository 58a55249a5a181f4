//! The taxonomy: fields, sub-fields and disciplines, the one input of the method that people write (section 2.1).
//!
//! Read from TOML (`taxonomy_file.rs`), checked, and written to `generate/taxonomy.json` with an id and a parent for every
//! node, so that every later record can be traced to its leaf. How many questions a leaf gets: `shares.rs`.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::shares;
use crate::{config::Balance, error::usage, records};

/// The whole tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taxonomy {
    /// Top level, in the order of the file.
    pub fields: Vec<Field>,
}

/// A top-level node, such as natural sciences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// Hash of the name.
    pub id: String,
    /// As written.
    pub name: String,
    /// Its part of the questions.
    #[serde(flatten)]
    pub share: Share,
    /// In the order of the file.
    pub subfields: Vec<Subfield>,
}

/// A middle node, such as earth and space sciences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subfield {
    /// Hash of the field's id and the name.
    pub id: String,
    /// The field's id.
    pub parent: String,
    /// As written.
    pub name: String,
    /// Its part of the questions.
    #[serde(flatten)]
    pub share: Share,
    /// In the order of the file.
    pub disciplines: Vec<DisciplineNode>,
}

/// A leaf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DisciplineNode {
    /// Hash of the sub-field's id and the name.
    pub id: String,
    /// The sub-field's id.
    pub parent: String,
    /// As written.
    pub name: String,
    /// Its part of the questions.
    #[serde(flatten)]
    pub share: Share,
}

/// How much of the questions a node of any level gets. Written only where it differs from the default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// Beside the others' 1; above 0. Weights along a path are multiplied.
    #[serde(skip_serializing_if = "is_one")]
    pub weight: f64,
    /// Exactly this share of all questions; 0 asks for none in particular.
    #[serde(skip_serializing_if = "is_zero")]
    pub quota: f64,
    /// At most this share of all questions; 1 is no limit.
    #[serde(skip_serializing_if = "is_one")]
    pub cap: f64,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1.0, quota: 0.0, cap: 1.0 }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// A leaf together with the names above it: what the subject prompts need.
#[derive(Debug, Clone, PartialEq)]
pub struct Discipline {
    /// The leaf's id.
    pub id: String,
    /// Name of the field.
    pub field: String,
    /// Name of the sub-field.
    pub subfield: String,
    /// Name of the discipline.
    pub name: String,
    /// Its share of the questions beside the others', weights, quotas and caps of all levels considered.
    pub weight: f64,
}

impl Taxonomy {
    /// Every leaf in the order of the file, weighted as [`shares::leaf_weights`] has it.
    ///
    /// **Errors**: usage, for quotas and caps that cannot all hold.
    pub fn disciplines(&self, balance: Balance) -> Result<Vec<Discipline>> {
        let weights = shares::leaf_weights(self, balance).map_err(|what| usage(format!("the taxonomy's {what}")))?;
        let leaves = self.fields.iter().flat_map(|field| {
            field
                .subfields
                .iter()
                .flat_map(move |subfield| subfield.disciplines.iter().map(move |leaf| (field, subfield, leaf)))
        });
        let leaves = leaves.zip(weights).map(|((field, subfield, leaf), weight)| Discipline {
            id: leaf.id.clone(),
            field: field.name.clone(),
            subfield: subfield.name.clone(),
            name: leaf.name.clone(),
            weight,
        });
        Ok(leaves.collect())
    }

    /// Writes `taxonomy.json`, or checks that the one there is this one.
    ///
    /// **Errors**: usage, when the run directory was begun with another taxonomy.
    pub fn save(&self, path: &Path) -> Result<()> {
        if path.exists() {
            let begun_with: Taxonomy = records::read_json(path)?;
            if begun_with != *self {
                return Err(usage(format!(
                    "the taxonomy differs from the one that this run was begun with (`{}`); \
                     take another --run-dir, or undo the change",
                    path.display()
                )));
            }
            return Ok(());
        }
        records::write_json(path, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn load(source: &str) -> Result<Taxonomy> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("taxonomy.toml");
        std::fs::write(&path, source)?;
        Taxonomy::load(&path)
    }

    #[test]
    fn strings_and_tables_name_disciplines_and_every_node_knows_its_parent() -> Result<()> {
        let taxonomy = load(
            "[[fields]]\nname = \"Science\"\n[[fields.subfields]]\nname = \"Nature\"\n\
             disciplines = [\"Physics\", {name = \"Biology\", weight = 0.25}]\n",
        )?;
        let leaves = taxonomy.disciplines(Balance::Discipline)?;
        assert_eq!(leaves.iter().map(|leaf| leaf.name.as_str()).collect::<Vec<_>>(), ["Physics", "Biology"]);
        assert_eq!((leaves[1].field.as_str(), leaves[1].subfield.as_str()), ("Science", "Nature"));
        assert_eq!((leaves[0].weight, leaves[1].weight), (1.0, 0.25));
        // A leaf without a weight is written as it always was, so earlier runs go on.
        assert!(!serde_json::to_string(&taxonomy.fields[0].subfields[0].disciplines[0])?.contains("weight"));
        let subfield = &taxonomy.fields[0].subfields[0];
        assert_eq!(subfield.parent, taxonomy.fields[0].id);
        assert!(subfield.disciplines.iter().all(|leaf| leaf.parent == subfield.id));
        Ok(())
    }

    #[test]
    fn faults_are_usage_errors_that_name_the_file_and_the_place() {
        let nature = "[[fields]]\nname = \"Science\"\n[[fields.subfields]]\nname = \"Nature\"\n";
        for (source, expected) in [
            (" \n".into(), "is empty"),
            ("fields = []".into(), "no field"),
            ("fields = 3".into(), "line 1"),
            ("[[fields]]\nname = \"Science\"\nsubfields = []".into(), "field `Science` has no sub-field"),
            (format!("{nature}disciplines = []"), "sub-field `Nature` has no discipline"),
            (format!("{nature}disciplines = [\"Physics\", \"physics \"]"), "`physics` twice (numbers 1 and 2)"),
            (format!("{nature}disciplines = [\"\"]"), "number 1 has an empty name"),
            (format!("{nature}disciplines = [3]"), "a discipline: a string"),
            (
                format!("{nature}disciplines = [{{name = \"Physics\", weight = 0}}]"),
                "the weight 0, but it must be above 0",
            ),
            (format!("{nature}disciplines = [\"Physics\"]\ncolour = 1"), "colour"),
        ] {
            let error = load(&source).expect_err("the source is faulty");
            let message = format!("{error:#}");
            assert_eq!(exit_code(&error), 2, "{message}");
            assert!(message.contains("taxonomy.toml") && message.contains(expected), "{expected}: {message}");
        }
        let error = Taxonomy::load(Path::new("no/such/file.toml")).expect_err("there is no such file");
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn a_run_begun_with_another_taxonomy_is_refused() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("taxonomy.json");
        let source = |name: &str| {
            format!("[[fields]]\nname = \"F\"\n[[fields.subfields]]\nname = \"S\"\ndisciplines = [\"{name}\"]")
        };
        load(&source("Physics"))?.save(&path)?;
        load(&source("Physics"))?.save(&path)?;
        let error = load(&source("Biology"))?.save(&path).expect_err("another taxonomy");
        assert_eq!(exit_code(&error), 2);
        Ok(())
    }

    #[test]
    fn the_paper_s_taxonomy_has_its_123_readable_disciplines_in_8_fields() -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/taxonomy.toml");
        let taxonomy = Taxonomy::load(&path)?;
        assert_eq!(taxonomy.fields.len(), 8);
        let mut names: Vec<_> = taxonomy.disciplines(Balance::Discipline)?.into_iter().map(|leaf| leaf.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 123);
        Ok(())
    }
}
