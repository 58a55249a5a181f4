//! `--only "Mathematics > Algebra"`: one branch of a finished run is drawn anew, all others stay as they are.
//!
//! A branch is a field, a sub-field, a discipline or a subject. Drawing it anew raises its edition, which is part of the ids
//! (and so of the seeds) of everything below it. `branches.jsonl` holds what was drawn anew; like the taxonomy it is
//! part of what the stage reads from then on, so a kill or a later `glan generate` goes on with it.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Stats, subjects::Subject, taxonomy::Discipline, text::normalized_name};
use crate::{
    error::usage,
    records::{read_json, read_partial_jsonl, write_atomic},
};

/// What was drawn anew, in the stage's folder.
const FILE: &str = "branches.jsonl";

/// A line of `branches.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Redrawn {
    /// From the field down.
    path: String,
    /// Ids of the disciplines.
    disciplines: Vec<String>,
    /// Key of the subject's name, where it is one subject; else empty.
    subject: String,
    /// Whether everything below it is there again.
    finished: bool,
}

/// How often each branch was drawn anew.
#[derive(Debug, Clone, Default)]
pub struct Editions {
    redrawn: Vec<Redrawn>,
}

/// A node that a path may name.
struct Node {
    /// Names from the field down.
    names: Vec<String>,
    disciplines: Vec<String>,
    subject: String,
}

impl Editions {
    /// Those of a run, which ends with `last_step`; `only` names a branch to be drawn anew.
    ///
    /// **Errors**: usage, for a path that names no node or several, and for a run that is not finished.
    pub fn open(folder: &Path, only: Option<&str>, disciplines: &[Discipline], last_step: &str) -> Result<Self> {
        let path = folder.join(FILE);
        let mut editions = Self { redrawn: read_partial_jsonl(&path)? };
        let Some(only) = only else { return Ok(editions) };
        let node = find(only, &nodes(folder, disciplines)?)?;
        let shown = node.names.join(" > ");
        match editions.redrawn.last() {
            Some(last) if !last.finished && last.path == shown => tracing::info!("going on with `{shown}`"),
            _ if !is_finished(folder, last_step) => {
                return Err(usage(format!(
                    "--only draws a branch of a finished run anew, and `{}` is not finished; run the same command without \
                     --only first",
                    folder.display()
                )));
            }
            _ => {
                let Node { disciplines, subject, .. } = node;
                editions.redrawn.push(Redrawn { path: shown, disciplines, subject, finished: false });
                editions.save(&path)?;
            }
        }
        Ok(editions)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let mut lines = Vec::new();
        for redrawn in &self.redrawn {
            serde_json::to_writer(&mut lines, redrawn)?;
            lines.push(b'\n');
        }
        write_atomic(path, &lines)
    }

    /// Notes that everything is there.
    pub fn finish(&mut self, folder: &Path) -> Result<()> {
        if self.redrawn.iter().all(|redrawn| redrawn.finished) {
            return Ok(());
        }
        self.redrawn.iter_mut().for_each(|redrawn| redrawn.finished = true);
        self.save(&folder.join(FILE))
    }

    /// Of a discipline's subjects.
    pub fn of_discipline(&self, id: &str) -> usize {
        let covers = |redrawn: &&Redrawn| redrawn.subject.is_empty() && redrawn.disciplines.iter().any(|it| it == id);
        self.redrawn.iter().filter(covers).count()
    }

    /// Of a subject's syllabi.
    pub fn of_subject(&self, subject: &Subject) -> usize {
        let key = normalized_name(&subject.subject);
        let covers = |redrawn: &&Redrawn| {
            (redrawn.subject.is_empty() || redrawn.subject == key) && redrawn.disciplines.contains(&subject.parent)
        };
        self.redrawn.iter().filter(covers).count()
    }
}

/// Whether every request of the run is answered.
fn is_finished(folder: &Path, last_step: &str) -> bool {
    read_json::<Stats>(&folder.join("stats.json")).is_ok_and(|stats| {
        stats.steps.iter().all(|step| step.pending == 0) && stats.steps.iter().any(|step| step.step == last_step)
    })
}

/// Every field, sub-field, discipline and subject.
fn nodes(folder: &Path, disciplines: &[Discipline]) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for discipline in disciplines {
        let names = [&discipline.field, &discipline.subfield, &discipline.name];
        for depth in 1..=names.len() {
            let names: Vec<String> = names[..depth].iter().map(|&name| name.clone()).collect();
            match nodes.iter_mut().find(|node| node.names == names) {
                Some(node) => node.disciplines.push(discipline.id.clone()),
                None => nodes.push(Node { names, disciplines: vec![discipline.id.clone()], subject: String::new() }),
            }
        }
    }
    for subject in read_partial_jsonl::<Subject>(&folder.join("subjects.jsonl"))? {
        let key = normalized_name(&subject.subject);
        let names = vec![subject.field, subject.subfield, subject.discipline, subject.subject];
        nodes.push(Node { names, disciplines: vec![subject.parent], subject: key });
    }
    Ok(nodes)
}

/// The node of a path: its last name, below its other names in this order. Of several, the one nearest the root.
fn find(path: &str, nodes: &[Node]) -> Result<Node> {
    let wanted: Vec<String> = path.split('>').map(normalized_name).collect();
    let is_match = |node: &&Node| {
        let names: Vec<String> = node.names.iter().map(|name| normalized_name(name)).collect();
        let mut above = names.iter();
        names.last() == wanted.last() && wanted.iter().all(|name| above.any(|other| other == name))
    };
    let mut found: Vec<&Node> = nodes.iter().filter(is_match).collect();
    let nearest = found.iter().map(|node| node.names.len()).min();
    found.retain(|node| Some(node.names.len()) == nearest);
    match found.as_slice() {
        [node] => {
            Ok(Node { names: node.names.clone(), disciplines: node.disciplines.clone(), subject: node.subject.clone() })
        }
        [] => Err(usage(format!(
            "--only `{path}` names no field, sub-field, discipline or subject of this run (write names from above to \
             below, such as \"Mathematics > Algebra\")"
        ))),
        several => {
            let paths: Vec<String> = several.iter().map(|node| format!("\"{}\"", node.names.join(" > "))).collect();
            Err(usage(format!("--only `{path}` may be {}; write more of the path", paths.join(" or "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn discipline(field: &str, subfield: &str, name: &str) -> Discipline {
        Discipline {
            id: format!("{field} {subfield} {name}"),
            field: field.into(),
            subfield: subfield.into(),
            name: name.into(),
            weight: 1.0,
        }
    }

    #[test]
    fn a_path_names_a_node_by_its_last_name_below_the_others() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let disciplines = [
            discipline("Science", "Formal", "Mathematics"),
            discipline("Science", "Formal", "Logic"),
            discipline("Science", "Natural", "Physics"),
            discipline("Humanities", "Thought", "Logic"),
        ];
        let subject = |discipline: &Discipline, name: &str| Subject {
            id: name.into(),
            parent: discipline.id.clone(),
            field: discipline.field.clone(),
            subfield: discipline.subfield.clone(),
            discipline: discipline.name.clone(),
            subject: name.into(),
            level: String::new(),
            subtopics: Vec::new(),
            samples: 1,
        };
        let mut lines = String::new();
        for subject in [subject(&disciplines[0], "Algebra"), subject(&disciplines[2], "Mathematics")] {
            lines += &format!("{}\n", serde_json::to_string(&subject)?);
        }
        std::fs::write(folder.path().join("subjects.jsonl"), lines)?;
        let nodes = nodes(folder.path(), &disciplines)?;
        for (path, disciplines, subject) in [
            ("science", 3, ""),
            ("Science > Formal", 2, ""),
            ("Mathematics", 1, ""),
            ("Mathematics > algebra", 1, "algebra"),
            ("Science>Algebra", 1, "algebra"),
            ("Physics > Mathematics", 1, "mathematic"),
            ("Humanities > Logic", 1, ""),
        ] {
            let node = find(path, &nodes)?;
            assert_eq!((node.disciplines.len(), node.subject.as_str()), (disciplines, subject), "{path}");
        }
        for (path, said) in
            [("Logic", "Science > Formal > Logic\" or \"Humanities"), ("Poetry", "names no"), ("", "names no")]
        {
            let Err(error) = find(path, &nodes) else { panic!("{path} names nothing") };
            assert!(exit_code(&error) == 2 && error.to_string().contains(said), "{path}: {error}");
        }
        Ok(())
    }
}
