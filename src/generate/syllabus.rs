//! Subjects to syllabi (section 2.3): an introduction and class sessions, each with a description and key concepts.

use std::collections::HashMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Stage,
    branch::Editions,
    prompts::{PromptKind, Prompts},
    step::{Step, Work, WorkList, run_step},
    subjects::Subject,
    text::{Rejection, normalized_name, parse_json, string_field, string_list, without_thoughts},
    two_step::{Drafts, Topic, json_sampling, with_drafts},
    weak::Samples,
};
use crate::{
    config::{Config, GenerateConfig},
    language_model::{Message, SamplingParams},
};

/// A line of `syllabi.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Syllabus {
    /// Hash of what made it.
    pub id: String,
    /// Id of the subject.
    pub parent: String,
    /// Name of the discipline.
    pub discipline: String,
    /// Name of the subject.
    pub subject: String,
    /// Level of the subject; may be empty.
    pub level: String,
    /// May be empty.
    pub introduction: String,
    /// In the order of teaching; titles differ.
    pub class_sessions: Vec<ClassSession>,
}

/// One session of a course.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassSession {
    /// Never empty.
    pub title: String,
    /// May be empty.
    pub description: String,
    /// What students must master; distinct, at least one.
    pub key_concepts: Vec<String>,
}

/// Does what is left of the sub-steps and returns the syllabi: of the plain stage, then of each round.
pub fn run(
    stage: &mut Stage,
    prompts: &Prompts,
    subjects: &[Subject],
    samples: &Samples,
    (num_rounds, editions): (usize, &Editions),
) -> Result<Vec<Vec<Syllabus>>> {
    let config = stage.config;
    let mut topics: Vec<Topic> = (0..=num_rounds)
        .flat_map(|round| subjects.iter().map(move |subject| (round, subject)))
        .flat_map(|(round, subject)| {
            samples.of(&subject.discipline, round).map(|sample| {
                let edition = editions.of_subject(subject);
                Topic { edition, ..topic(&config.generate, subject, sample) }
            })
        })
        .collect();
    if config.generate.two_step {
        let drafts = Drafts {
            name: "syllabus_drafts",
            file: "syllabus_drafts.jsonl",
            kind: PromptKind::Syllabus,
            sampling: &config.generate.syllabus,
            prompts,
            run_seed: config.seed,
            topics: &topics,
        };
        topics = with_drafts(stage, &drafts)?;
    }
    let step = Syllabi { config, prompts, topics };
    run_step(stage, &step)?;
    let round_of = |topic: &Topic| samples.round_of(&string_field(&topic.variables, &["discipline"]), topic.sample);
    let rounds: HashMap<String, usize> =
        step.topics.iter().map(|topic| (topic.id(step.name(), config.seed), round_of(topic))).collect();
    let mut syllabi = vec![Vec::new(); num_rounds + 1];
    for syllabus in stage.read(&step)? {
        let round = rounds.get(&syllabus.id).copied().unwrap_or(0);
        syllabi[round].push(syllabus);
    }
    Ok(syllabi)
}

/// A hash of all syllabi: whether two machines draw their questions from the same ones.
pub fn hash(syllabi: &[Vec<Syllabus>]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for syllabus in syllabi.iter().flatten() {
        hasher.update(&serde_json::to_vec(syllabus)?);
    }
    Ok(hasher.finalize().to_hex()[..16].to_string())
}

fn topic(config: &GenerateConfig, subject: &Subject, sample: usize) -> Topic {
    Topic {
        parent: subject.id.clone(),
        sample,
        edition: 0,
        variables: json!({
            "discipline": subject.discipline,
            "subject": subject.subject,
            "level": subject.level,
            "subtopics": subject.subtopics,
            "min_class_sessions": config.min_class_sessions,
            "max_class_sessions": config.max_class_sessions,
            "min_key_concepts": config.min_key_concepts,
            "max_key_concepts": config.max_key_concepts,
        }),
        draft: None,
    }
}

struct Syllabi<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    topics: Vec<Topic>,
}

impl Step for Syllabi<'_> {
    type Item = Topic;
    type Record = Syllabus;

    fn name(&self) -> &'static str {
        "syllabi"
    }

    fn file(&self) -> &'static str {
        "syllabi.jsonl"
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
        topic.json_messages(self.prompts, PromptKind::Syllabus, PromptKind::SyllabusJson)
    }

    fn sampling(&self) -> SamplingParams {
        let config = &self.config.generate;
        json_sampling(&config.syllabus, config.two_step, schema(config))
    }

    fn record(&self, work: &Work<Topic>, text: &str) -> Result<Syllabus, Rejection> {
        let (introduction, class_sessions) = read_syllabus(&self.config.generate, text)?;
        let variables = &work.item.variables;
        Ok(Syllabus {
            id: work.id.clone(),
            parent: work.parent.clone(),
            discipline: string_field(variables, &["discipline"]),
            subject: string_field(variables, &["subject"]),
            level: string_field(variables, &["level"]),
            introduction,
            class_sessions,
        })
    }
}

/// Strings are bounded so that a rambling teacher closes them before it runs out of tokens.
fn schema(config: &GenerateConfig) -> Value {
    json!({
        "type": "object",
        "properties": {
            "introduction": {"type": "string", "minLength": 1, "maxLength": 1200},
            "class_sessions": {
                "type": "array", "minItems": config.min_class_sessions, "maxItems": config.max_class_sessions,
                "items": {
                    "type": "object",
                    "properties": {
                        "title": {"type": "string", "minLength": 1, "maxLength": 160},
                        "description": {"type": "string", "minLength": 1, "maxLength": 600},
                        "key_concepts": {
                            "type": "array",
                            "minItems": config.min_key_concepts, "maxItems": config.max_key_concepts,
                            "items": {"type": "string", "minLength": 1, "maxLength": 160},
                        },
                    },
                    "required": ["title", "description", "key_concepts"],
                    "additionalProperties": false,
                },
            },
        },
        "required": ["introduction", "class_sessions"],
        "additionalProperties": false,
    })
}

/// Introduction and class sessions of a reply. Sessions without title or concepts and sessions that repeat a title
/// are dropped; what is over the configured numbers is cut.
fn read_syllabus(config: &GenerateConfig, text: &str) -> Result<(String, Vec<ClassSession>), Rejection> {
    let text = without_thoughts(text);
    if text.is_empty() {
        return Err(Rejection::new("empty", ""));
    }
    let object = parse_json(text).map_err(|error| Rejection::new("malformed_json", format!("{error}: {text}")))?;
    let Some(Value::Array(sessions)) = object.get("class_sessions") else {
        return Err(Rejection::new("malformed_json", format!("no list `class_sessions`: {text}")));
    };
    let mut titles = std::collections::HashSet::new();
    let class_sessions: Vec<ClassSession> = sessions
        .iter()
        .map(|session| ClassSession {
            title: string_field(session, &["title"]),
            description: string_field(session, &["description"]),
            key_concepts: string_list(session, "key_concepts", config.max_key_concepts),
        })
        .filter(|session| !session.title.is_empty() && !session.key_concepts.is_empty())
        .filter(|session| titles.insert(normalized_name(&session.title)))
        .take(config.max_class_sessions)
        .collect();
    if class_sessions.len() < config.min_class_sessions.max(1) {
        let found = class_sessions.len();
        let evidence = format!("{found} usable of at least {}: {text}", config.min_class_sessions.max(1));
        return Err(Rejection::new("too_few_class_sessions", evidence));
    }
    Ok((string_field(&object, &["introduction"]), class_sessions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerateConfig {
        GenerateConfig {
            min_class_sessions: 2,
            max_class_sessions: 3,
            max_key_concepts: 2,
            ..GenerateConfig::default()
        }
    }

    fn session(title: &str, concepts: &[&str]) -> Value {
        json!({"title": title, "description": "d", "key_concepts": concepts})
    }

    #[test]
    fn damaged_and_repeated_sessions_are_dropped_and_bounds_kept() {
        let sessions = [
            session("One", &["a", "A.", "b", "c"]),
            session("", &["a"]),
            session("one", &["a"]),
            json!("Two"),
            session("Three", &[]),
            session("Four", &["+", "-"]),
            session("Five", &["a"]),
            session("Six", &["a"]),
        ];
        let text = json!({"introduction": "I\nJ", "class_sessions": sessions}).to_string();
        let (introduction, kept) = read_syllabus(&config(), &text).expect("three sessions are usable");
        assert_eq!(introduction, "I J");
        let titles: Vec<_> = kept.iter().map(|session| session.title.as_str()).collect();
        assert_eq!(titles, ["One", "Four", "Five"]);
        assert_eq!(kept[0].key_concepts, ["a", "b"]);
        assert_eq!(kept[1].key_concepts, ["+", "-"]);
    }

    #[test]
    fn unusable_replies_have_a_reason() {
        let few = json!({"introduction": "", "class_sessions": [session("One", &["a"])]}).to_string();
        for (text, reason) in [
            ("", "empty"),
            ("Week 1: greetings", "malformed_json"),
            ("{\"class_sessions\": [", "malformed_json"),
            ("{\"introduction\": \"x\"}", "malformed_json"),
            (few.as_str(), "too_few_class_sessions"),
        ] {
            assert_eq!(read_syllabus(&config(), text).expect_err("unusable").reason, reason, "{text}");
        }
    }
}
