//! The taxonomy: fields, sub-fields and disciplines, the one input of the method that people write (section 2.1).
//!
//! Read from TOML, checked, and written to `generate/taxonomy.json` with an id and a parent for every node, so that
//! every later record can be traced to its leaf.

use std::{collections::HashMap, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::text::normalized_name;
use crate::{error::usage, records, seed::record_id};

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
    /// Its share of the questions beside the others'; above 0.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
}

/// The weight of a leaf that names none.
fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_one(weight: &f64) -> bool {
    *weight == 1.0
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
    /// Its share of the questions beside the others'.
    pub weight: f64,
}

impl Taxonomy {
    /// Reads and checks a taxonomy file.
    ///
    /// **Errors**: usage, naming the file and the place in it: unreadable, not TOML, unknown keys, empty names or
    /// lists, and a name twice under one parent (the same discipline in two sub-fields is allowed).
    pub fn load(path: &Path) -> Result<Self> {
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
        let raw: RawTaxonomy = toml::from_str(&source).map_err(|error| {
            usage(format!(
                "taxonomy `{}` is not as expected ([[fields]] with name, [[fields.subfields]] with name and \
                 disciplines): {}",
                path.display(),
                error.to_string().trim_end()
            ))
        })?;
        raw.check().map_err(|problem| usage(format!("taxonomy `{}`: {problem}", path.display())))
    }

    /// Every leaf in the order of the file.
    pub fn disciplines(&self) -> Vec<Discipline> {
        let mut leaves = Vec::new();
        for field in &self.fields {
            for subfield in &field.subfields {
                leaves.extend(subfield.disciplines.iter().map(|leaf| Discipline {
                    id: leaf.id.clone(),
                    field: field.name.clone(),
                    subfield: subfield.name.clone(),
                    name: leaf.name.clone(),
                    weight: leaf.weight,
                }));
            }
        }
        leaves
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTaxonomy {
    fields: Vec<RawField>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    name: String,
    subfields: Vec<RawSubfield>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSubfield {
    name: String,
    disciplines: Vec<RawDiscipline>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a discipline: a string, or a table such as { name = \"Physics\" }")]
enum RawDiscipline {
    Name(String),
    Table(RawDisciplineTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisciplineTable {
    name: String,
    #[serde(default = "one")]
    weight: f64,
}

impl RawTaxonomy {
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
            let subfields = field.subfields.into_iter().map(|subfield| subfield.check(&id, &place));
            fields.push(Field { subfields: subfields.collect::<Result<_, _>>()?, id, name });
        }
        Ok(Taxonomy { fields })
    }
}

impl RawSubfield {
    fn check(self, parent: &str, place: &str) -> Result<Subfield, String> {
        let name = self.name.trim().to_owned();
        let id = record_id(&["subfield", parent, &name]);
        let (names, weights): (Vec<String>, Vec<f64>) = self
            .disciplines
            .into_iter()
            .map(|discipline| match discipline {
                RawDiscipline::Name(name) => (name, one()),
                RawDiscipline::Table(RawDisciplineTable { name, weight }) => (name, weight),
            })
            .unzip();
        check_names("discipline", &format!("{place}, sub-field `{name}`"), &names)?;
        if let Some((leaf, weight)) =
            names.iter().zip(&weights).find(|(_, weight)| !(weight.is_finite() && **weight > 0.0))
        {
            return Err(format!("the discipline `{}` has the weight {weight}, but it must be above 0", leaf.trim()));
        }
        let disciplines = names.iter().map(|leaf| leaf.trim()).zip(weights).map(|(leaf, weight)| DisciplineNode {
            id: record_id(&["discipline", &id, leaf]),
            parent: id.clone(),
            name: leaf.to_owned(),
            weight,
        });
        Ok(Subfield { disciplines: disciplines.collect(), parent: parent.to_owned(), id, name })
    }
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
        let leaves = taxonomy.disciplines();
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
        let mut names: Vec<_> = taxonomy.disciplines().into_iter().map(|leaf| leaf.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 123);
        Ok(())
    }
}
