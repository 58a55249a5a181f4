//! `[generate]`: taxonomy to question-answer pairs. Defaults are the paper's (section 3.1) where it speaks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Stage 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Fields, sub-fields and disciplines, as TOML. One that the run has built itself (`generate/taxonomy.toml`) goes before it.
    pub taxonomy: PathBuf,
    /// Further files of the same form, whose branches are added: a company's or a course's own domain.
    pub extend_taxonomy: Vec<PathBuf>,
    /// Nodes of which level get even shares of the questions, where the taxonomy gives no weights.
    pub balance: Balance,
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
    /// Share of questions that join two subjects of a discipline (one class session of each); 0, as in the paper, is off.
    pub cross_subject_ratio: f64,
    /// Share of questions that join subjects of two disciplines; 0, as in the paper, is off.
    pub cross_discipline_ratio: f64,
    /// Answers drawn per question; of several the one stays whose result most of them have. 1, as in the paper, is off.
    pub answers_per_question: usize,
    /// Have the teacher criticise each answer, and write it anew where there is something to change.
    pub critique_and_rewrite: bool,
    /// Turns that follow the first question and answer, each a question of the student and its answer; 0, as in the paper, is
    /// off.
    pub follow_up_turns: usize,
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
    /// What questions are varied by.
    pub vary: VaryConfig,
    /// How `--stage taxonomy` builds one.
    pub build_taxonomy: BuildTaxonomyConfig,
    /// Sampling of subjects, and of a taxonomy that is built.
    pub subjects: SamplingConfig,
    /// Sampling of syllabi.
    pub syllabus: SamplingConfig,
    /// Sampling of questions.
    pub question: SamplingConfig,
    /// Sampling of answers, also of those written anew and in later turns.
    pub answer: SamplingConfig,
    /// Sampling of critiques.
    pub critique: SamplingConfig,
    /// Sampling of the judge's scores.
    pub judgement: SamplingConfig,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        let creative = SamplingConfig { temperature: 1.0, ..SamplingConfig::default() };
        Self {
            taxonomy: PathBuf::from("configs/taxonomy.toml"),
            extend_taxonomy: Vec::new(),
            balance: Balance::Discipline,
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
            cross_subject_ratio: 0.0,
            cross_discipline_ratio: 0.0,
            answers_per_question: 1,
            critique_and_rewrite: false,
            follow_up_turns: 0,
            two_step: true,
            max_attempts: 1,
            pilot_questions: 200,
            min_yield: 0.3,
            vary: VaryConfig::default(),
            build_taxonomy: BuildTaxonomyConfig::default(),
            subjects: SamplingConfig { max_new_tokens: 4096, ..creative.clone() },
            syllabus: SamplingConfig { max_new_tokens: 6144, ..creative.clone() },
            question: SamplingConfig { max_new_tokens: 512, ..creative },
            answer: SamplingConfig { temperature: 0.7, max_new_tokens: 2048, ..SamplingConfig::default() },
            critique: SamplingConfig { temperature: 0.7, ..SamplingConfig::default() },
            judgement: SamplingConfig { temperature: 0.0, max_new_tokens: 512, ..SamplingConfig::default() },
        }
    }
}

/// What is even where all weights are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Disciplines, as in the paper: a field of many disciplines gets more than one of few.
    Discipline,
    /// Sub-fields; within them disciplines.
    Subfield,
    /// Fields; within them disciplines.
    Field,
}

/// Attributes that are sampled per question, told to the teacher and kept in the record. Each key is the share of questions
/// that get one; 0 is off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaryConfig {
    /// A kind of task, such as a calculation or a case study.
    pub task_type_ratio: f64,
    /// A level of difficulty.
    pub difficulty_ratio: f64,
    /// Somebody for whom it is written.
    pub persona_ratio: f64,
    /// A country whose places and customs it uses, regions being equally likely.
    pub region_ratio: f64,
    /// A name for the person in it, regions and genders being equally likely.
    pub name_ratio: f64,
    /// The lists, written as `configs/lexicons/variety.toml`; empty takes the built-in ones.
    pub lists: PathBuf,
}

/// A taxonomy from the teacher: fields, then sub-fields of each, then disciplines of each, several times over and merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildTaxonomyConfig {
    /// Times each list is asked for.
    pub samples: usize,
    /// Most names of one such list.
    pub names_per_sample: usize,
    /// A name stays where at least so many samples have it.
    pub min_samples: usize,
    /// Most fields; those stay that most samples have. 0 keeps all.
    pub max_fields: usize,
    /// Most sub-fields of a field; 0 keeps all.
    pub max_subfields: usize,
    /// Most disciplines of a sub-field; 0 keeps all.
    pub max_disciplines: usize,
}

impl Default for BuildTaxonomyConfig {
    fn default() -> Self {
        Self { samples: 5, names_per_sample: 20, min_samples: 1, max_fields: 0, max_subfields: 0, max_disciplines: 0 }
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
