//! Disciplines to subjects (section 2.2): each discipline is asked several times at temperature 1, and the lists are
//! merged.
//!
//! `subjects_raw.jsonl` holds one line per sample as the teacher gave it; `subjects.jsonl` is computed from it. Within
//! a discipline a subject counts once, whatever its spelling; the same subject in two disciplines is kept in both, as
//! the paper does on purpose (section 3.1).

use std::collections::HashMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Stage,
    branch::Editions,
    prompts::{PromptKind, Prompts},
    step::{Step, Work, WorkList, run_step},
    taxonomy::Discipline,
    text::{Rejection, distinct, normalized_name, objects_under, string_field, string_list},
    two_step::{Drafts, Topic, json_sampling, with_drafts},
};
use crate::{
    config::{Config, GenerateConfig},
    language_model::{Message, SamplingParams},
    records::write_atomic,
    seed::record_id,
};

/// A line of `subjects.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Hash of discipline, name, level and subtopics.
    pub id: String,
    /// Id of the discipline.
    pub parent: String,
    /// Name of the field.
    pub field: String,
    /// Name of the sub-field.
    pub subfield: String,
    /// Name of the discipline.
    pub discipline: String,
    /// As first spelt.
    pub subject: String,
    /// As first given; may be empty.
    pub level: String,
    /// Union over the samples, in order of appearance.
    pub subtopics: Vec<String>,
    /// How many samples of the discipline named it.
    pub samples: usize,
}

/// A line of `subjects_raw.jsonl`: one reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubjectSample {
    /// Hash of what made it.
    pub id: String,
    /// Id of the discipline.
    pub parent: String,
    /// Name of the discipline.
    pub discipline: String,
    /// Which of the discipline's samples this is.
    pub sample: usize,
    /// What it lists.
    pub subjects: Vec<RawSubject>,
}

/// A subject as one reply gives it, with the keys of the paper's prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RawSubject {
    /// Never empty.
    pub subject_name: String,
    /// May be empty.
    pub level: String,
    /// May be empty.
    pub subtopics: Vec<String>,
}

/// Most subtopics of one subject: a syllabus prompt should not grow with the number of samples.
const MAX_SUBTOPICS: usize = 16;

/// Longer names are prose, not names. Characters.
const MAX_NAME_CHARS: usize = 120;

/// Does what is left of the sub-steps and returns the subjects of every discipline.
pub fn run(
    stage: &mut Stage,
    prompts: &Prompts,
    disciplines: &[Discipline],
    editions: &Editions,
) -> Result<Vec<Subject>> {
    let config = stage.config;
    let mut topics = topics(&config.generate, disciplines, editions);
    if config.generate.two_step {
        let drafts = Drafts {
            name: "subject_drafts",
            file: "subject_drafts.jsonl",
            kind: PromptKind::Subjects,
            sampling: &config.generate.subjects,
            prompts,
            run_seed: config.seed,
            topics: &topics,
        };
        topics = with_drafts(stage, &drafts)?;
    }
    let step = SubjectSamples { config, prompts, topics };
    run_step(stage, &step)?;
    let samples = stage.read(&step)?;
    let subjects = merge(&samples, disciplines, &config.generate, config.seed);
    let path = stage.folder.join("subjects.jsonl");
    let mut lines = Vec::new();
    for subject in &subjects {
        serde_json::to_writer(&mut lines, subject)?;
        lines.push(b'\n');
    }
    // Computed anew each time; written only where it is not there as it should be, and for shards when they are merged.
    if stage.shard.is_none() && std::fs::read(&path).ok().as_ref() != Some(&lines) {
        write_atomic(&path, &lines)?;
    }
    Ok(subjects)
}

fn topics(config: &GenerateConfig, disciplines: &[Discipline], editions: &Editions) -> Vec<Topic> {
    let topic = |discipline: &Discipline, sample| Topic {
        parent: discipline.id.clone(),
        sample,
        edition: editions.of_discipline(&discipline.id),
        variables: json!({
            "discipline": discipline.name,
            "field": discipline.field,
            "subfield": discipline.subfield,
            "num_subjects": config.subjects_per_sample,
        }),
        draft: None,
    };
    disciplines
        .iter()
        .flat_map(|discipline| (0..config.samples_per_discipline).map(move |sample| topic(discipline, sample)))
        .collect()
}

struct SubjectSamples<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    topics: Vec<Topic>,
}

impl Step for SubjectSamples<'_> {
    type Item = Topic;
    type Record = SubjectSample;

    fn name(&self) -> &'static str {
        "subjects"
    }

    fn file(&self) -> &'static str {
        "subjects_raw.jsonl"
    }

    fn total(&self) -> usize {
        self.topics.len()
    }

    fn work(&self) -> Result<WorkList<'_, Topic>> {
        Ok(Box::new(self.topics.iter().map(|topic| {
            let id = topic.id(self.name(), self.config.seed);
            Ok(Work { id, parent: topic.parent.clone(), item: topic.clone() })
        })))
    }

    fn messages(&self, topic: &Topic) -> Result<Vec<Message>> {
        topic.json_messages(self.prompts, PromptKind::Subjects, PromptKind::SubjectsJson)
    }

    fn sampling(&self) -> SamplingParams {
        let config = &self.config.generate;
        json_sampling(&config.subjects, config.two_step, schema(config))
    }

    fn record(&self, work: &Work<Topic>, text: &str) -> Result<SubjectSample, Rejection> {
        let objects = objects_under(text, "subjects")?;
        let subjects: Vec<RawSubject> =
            objects.iter().filter_map(raw_subject).take(self.config.generate.subjects_per_sample).collect();
        if subjects.is_empty() {
            return Err(Rejection::new("no_subjects", text));
        }
        Ok(SubjectSample {
            id: work.id.clone(),
            parent: work.parent.clone(),
            discipline: string_field(&work.item.variables, &["discipline"]),
            sample: work.item.sample,
            subjects,
        })
    }
}

/// Strings are bounded so that a rambling teacher closes them before it runs out of tokens.
fn schema(config: &GenerateConfig) -> Value {
    json!({
        "type": "object",
        "properties": {"subjects": {
            "type": "array", "minItems": 1, "maxItems": config.subjects_per_sample,
            "items": {
                "type": "object",
                "properties": {
                    "subject_name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS},
                    "level": {"type": "string", "minLength": 1, "maxLength": 60},
                    "subtopics": {
                        "type": "array", "minItems": 1, "maxItems": MAX_SUBTOPICS,
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS},
                    },
                },
                "required": ["subject_name", "level", "subtopics"],
                "additionalProperties": false,
            },
        }},
        "required": ["subjects"],
        "additionalProperties": false,
    })
}

fn raw_subject(object: &Value) -> Option<RawSubject> {
    let subject_name = string_field(object, &["subject_name", "subject", "name"]);
    let usable = !normalized_name(&subject_name).is_empty() && subject_name.chars().count() <= MAX_NAME_CHARS;
    usable.then(|| RawSubject {
        subject_name,
        level: string_field(object, &["level"]),
        subtopics: string_list(object, "subtopics", MAX_SUBTOPICS),
    })
}

/// Merges the samples of every discipline: first spelling and level, union of subtopics, how many samples named it.
/// Under `max_subjects` those named by most samples stay, the earlier of two that are even.
fn merge(
    samples: &[SubjectSample],
    disciplines: &[Discipline],
    config: &GenerateConfig,
    run_seed: u64,
) -> Vec<Subject> {
    let mut by_discipline: HashMap<&str, Vec<&SubjectSample>> = HashMap::new();
    for sample in samples {
        by_discipline.entry(&sample.parent).or_default().push(sample);
    }
    let mut merged = Vec::new();
    for discipline in disciplines {
        let samples = by_discipline.remove(discipline.id.as_str()).unwrap_or_default();
        if samples.is_empty() {
            tracing::warn!("the discipline `{}` has no usable subjects and is left out", discipline.name);
        }
        let mut subjects = merge_discipline(discipline, &samples);
        if config.max_subjects > 0 && subjects.len() > config.max_subjects {
            // The sort is stable, so ties stay in order of appearance.
            let mut by_samples: Vec<usize> = (0..subjects.len()).collect();
            by_samples.sort_by_key(|&index| std::cmp::Reverse(subjects[index].samples));
            let mut keep = by_samples[..config.max_subjects].to_vec();
            keep.sort_unstable();
            subjects = keep.into_iter().map(|index| subjects[index].clone()).collect();
        }
        for mut subject in subjects {
            let subtopics = subject.subtopics.join("\n");
            let parts = [discipline.id.as_str(), &subject.subject, &subject.level, &subtopics];
            subject.id = record_id(&[&["subject", &run_seed.to_string()], &parts[..]].concat());
            merged.push(subject);
        }
    }
    merged
}

fn merge_discipline(discipline: &Discipline, samples: &[&SubjectSample]) -> Vec<Subject> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut subjects: Vec<Subject> = Vec::new();
    for sample in samples {
        let mut named_here = std::collections::HashSet::new();
        for raw in &sample.subjects {
            let key = normalized_name(&raw.subject_name);
            let place = *places.entry(key).or_insert_with(|| {
                subjects.push(Subject {
                    id: String::new(),
                    parent: discipline.id.clone(),
                    field: discipline.field.clone(),
                    subfield: discipline.subfield.clone(),
                    discipline: discipline.name.clone(),
                    subject: raw.subject_name.clone(),
                    level: raw.level.clone(),
                    subtopics: Vec::new(),
                    samples: 0,
                });
                subjects.len() - 1
            });
            let subject = &mut subjects[place];
            // A list that names a subject twice is still one vote.
            subject.samples += usize::from(named_here.insert(place));
            let union = subject.subtopics.iter().chain(&raw.subtopics).cloned();
            subject.subtopics = distinct(union, MAX_SUBTOPICS);
        }
    }
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discipline(name: &str) -> Discipline {
        Discipline {
            id: format!("id of {name}"),
            field: "F".into(),
            subfield: "S".into(),
            name: name.into(),
            weight: 1.0,
        }
    }

    fn sample(of: &Discipline, sample: usize, subjects: &[(&str, &[&str])]) -> SubjectSample {
        let subjects = subjects.iter().map(|(name, subtopics)| RawSubject {
            subject_name: (*name).into(),
            level: format!("level {sample}"),
            subtopics: subtopics.iter().map(|&subtopic| subtopic.into()).collect(),
        });
        SubjectSample {
            id: format!("{} {sample}", of.id),
            parent: of.id.clone(),
            discipline: of.name.clone(),
            sample,
            subjects: subjects.collect(),
        }
    }

    #[test]
    fn spellings_merge_inside_a_discipline_and_never_across() {
        let (maths, physics) = (discipline("Mathematics"), discipline("Physics"));
        let samples = [
            sample(&maths, 0, &[("Differential Equations", &["Ordinary"]), ("Calculus", &["Limits"])]),
            sample(
                &maths,
                1,
                &[("differential equation.", &["ordinary", "Partial"]), ("CALCULUS", &[]), ("Calculus", &[])],
            ),
            sample(&physics, 0, &[("Calculus", &["Limits"])]),
        ];
        let merged = merge(&samples, &[maths, physics], &GenerateConfig::default(), 0);
        let rows: Vec<_> =
            merged.iter().map(|row| (row.discipline.as_str(), row.subject.as_str(), row.samples)).collect();
        assert_eq!(
            rows,
            [("Mathematics", "Differential Equations", 2), ("Mathematics", "Calculus", 2), ("Physics", "Calculus", 1)]
        );
        assert_eq!(merged[0].subtopics, ["Ordinary", "Partial"]);
        assert_eq!(merged[0].level, "level 0");
        assert_ne!(merged[1].id, merged[2].id);
    }

    #[test]
    fn the_cap_keeps_those_that_most_samples_named_in_order_of_appearance() {
        let maths = discipline("Mathematics");
        let samples = [
            sample(&maths, 0, &[("A", &[]), ("B", &[]), ("C", &[])]),
            sample(&maths, 1, &[("D", &[]), ("C", &[]), ("B", &[])]),
            sample(&maths, 2, &[("C", &[])]),
        ];
        let config = GenerateConfig { max_subjects: 3, ..GenerateConfig::default() };
        let merged = merge(&samples, &[maths], &config, 0);
        assert_eq!(merged.iter().map(|row| row.subject.as_str()).collect::<Vec<_>>(), ["A", "B", "C"]);
    }

    #[test]
    fn unusable_entries_are_left_out_one_by_one() {
        assert!(raw_subject(&json!({"subject_name": " ", "level": "x", "subtopics": []})).is_none());
        assert!(raw_subject(&json!({"subject_name": "x".repeat(500)})).is_none());
        assert!(raw_subject(&json!("Algebra")).is_none());
        let loose = raw_subject(&json!({"subject": "Algebra\nI", "level": 100, "subtopics": ["a", "A", 3, ""]}));
        assert_eq!(
            loose,
            Some(RawSubject { subject_name: "Algebra I".into(), level: "100".into(), subtopics: vec!["a".into()] })
        );
    }
}
