//! ARC: grade-school science questions with three to five choices, easy and challenge sets.
//!
//! **Source**: Clark et al. 2018, arXiv 1803.05457; prompts of lm-evaluation-harness's `arc_easy` and `arc_challenge`.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{
    data,
    task::{Document, OutputType, Sampler, Split, Target, Task, TaskSpec},
};

/// One of the two sets.
pub struct Arc {
    spec: TaskSpec,
}

/// The questions that simple methods answer.
pub static ARC_EASY: Arc = Arc { spec: spec("arc_easy", &["arc/arc_easy_test.jsonl", "arc/arc_easy_train.jsonl"]) };

/// The questions that simple methods fail.
pub static ARC_CHALLENGE: Arc =
    Arc { spec: spec("arc_challenge", &["arc/arc_challenge_test.jsonl", "arc/arc_challenge_train.jsonl"]) };

const fn spec(name: &'static str, files: &'static [&'static str]) -> TaskSpec {
    TaskSpec {
        name,
        version: 1.0,
        num_fewshot: 0,
        sampler: Sampler::Default,
        output_type: OutputType::MultipleChoice,
        doc_to_text: "Question: {{question}}\nAnswer:",
        doc_to_target: "answer",
        filters: &["none"],
        metrics: &["acc", "acc_norm"],
        files,
    }
}

impl Task for Arc {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn load(&self, data_dir: &Path, with_fewshot: bool) -> Result<Split> {
        let read = |name: &str| data::documents(data::read_rows(data_dir, name)?, name, document);
        let [test, train] = [self.spec.files[0], self.spec.files[1]];
        Ok(Split { documents: read(test)?, fewshot_pool: if with_fewshot { read(train)? } else { Vec::new() } })
    }
}

/// A multiple-choice document of the form `{"question", "choices", "answer": INDEX}`.
pub fn document(row: Value) -> Result<Document> {
    let (choices, gold) = data::choices(&row)?;
    Ok(Document {
        text: format!("Question: {}\nAnswer:", data::string(&row, "question")?),
        target: Target::Choice(gold),
        shot_answer: choices[gold].clone(),
        choices,
        row,
    })
}
