//! `[generate]`: taxonomy to question-answer pairs. Defaults are the paper's (section 3.1) where it speaks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Stage 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Fields, sub-fields and disciplines, as TOML.
    pub taxonomy: PathBuf,
    /// Folder of prompt templates; empty takes the built-in ones, written for real instruct models.
    pub prompts: PathBuf,
    /// Question-answer pairs to ask for, over the whole taxonomy.
    pub num_questions: usize,
    /// Times each discipline is asked for its subjects (10 in the paper).
    pub samples_per_discipline: usize,
    /// Subjects asked for in one such sample.
    pub subjects_per_sample: usize,
    /// Most subjects kept per discipline after merging; 0 keeps all.
    pub max_subjects: usize,
    /// Syllabi per subject (1 in the paper). More give more combinations of class sessions where subjects are few.
    pub syllabi_per_subject: usize,
    /// Fewest class sessions of a syllabus.
    pub min_class_sessions: usize,
    /// Most class sessions of a syllabus.
    pub max_class_sessions: usize,
    /// Fewest key concepts of a class session.
    pub min_key_concepts: usize,
    /// Most key concepts of a class session.
    pub max_key_concepts: usize,
    /// Share of questions that combine two class sessions (strategy 2 of the paper, which names no ratio).
    pub two_session_ratio: f64,
    /// Ask for subjects and syllabi as free text first and for their JSON in a second turn, as the paper does.
    pub two_step: bool,
    /// Times a request is asked whose answers cannot be used, each time with another seed; 1 asks once. It may be raised
    /// later: the same command then asks again for what failed, and for nothing else.
    pub max_attempts: usize,
    /// Questions of the pilot that comes before a run of 20 times as many, and of `--pilot`; 0 leaves it out. It changes
    /// no record.
    pub pilot_questions: usize,
    /// A stage ends with an error when less than this share of its requests gave a record.
    pub min_yield: f64,
    /// Sampling of subjects.
    pub subjects: SamplingConfig,
    /// Sampling of syllabi.
    pub syllabus: SamplingConfig,
    /// Sampling of questions.
    pub question: SamplingConfig,
    /// Sampling of answers.
    pub answer: SamplingConfig,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        let creative = SamplingConfig { temperature: 1.0, ..SamplingConfig::default() };
        Self {
            taxonomy: PathBuf::from("configs/taxonomy.toml"),
            prompts: PathBuf::new(),
            num_questions: 1000,
            samples_per_discipline: 10,
            subjects_per_sample: 20,
            max_subjects: 0,
            syllabi_per_subject: 1,
            min_class_sessions: 10,
            max_class_sessions: 30,
            min_key_concepts: 3,
            max_key_concepts: 7,
            two_session_ratio: 0.5,
            two_step: true,
            max_attempts: 1,
            pilot_questions: 200,
            min_yield: 0.3,
            subjects: SamplingConfig { max_new_tokens: 4096, ..creative.clone() },
            syllabus: SamplingConfig { max_new_tokens: 6144, ..creative.clone() },
            question: SamplingConfig { max_new_tokens: 512, ..creative },
            answer: SamplingConfig { temperature: 0.7, max_new_tokens: 2048, ..SamplingConfig::default() },
        }
    }
}

/// How one kind of request is sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus.
    pub top_p: f32,
    /// The k likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Relative floor; 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Most tokens of one answer.
    pub max_new_tokens: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 0.95, top_k: 0, min_p: 0.0, repetition_penalty: 1.0, max_new_tokens: 1024 }
    }
}
