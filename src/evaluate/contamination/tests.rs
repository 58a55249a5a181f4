//! The check end to end with scripted models.

use std::{cell::RefCell, fs, path::Path};

use anyhow::Result;
use serde_json::json;

use super::{Contamination, run_models};
use crate::{
    cli::StageArgs,
    config::Config,
    error,
    evaluate::{
        EvaluateArgs, Role, primer, run,
        scripted::{ScriptedModel, answers_right, answers_wrong},
        task::Task as _,
    },
    language_model::LanguageModel,
    records,
    run_dir::RunDir,
};

/// Four items per split; those of the training split hold the word "seen".
fn write_benchmark(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("gsm8k"))?;
    for (name, word) in [("test", "news"), ("train", "seen")] {
        let row = |index: u32| json!({"question": format!("What is {word} {index}?"), "answer": "#### 1"}).to_string();
        fs::write(folder.join(format!("gsm8k/{name}.jsonl")), (0..4).map(row).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(())
}

/// A scripted model finds what its script says likely (a sum of -0.25), all else unlikely (-10.5): so one that answers
/// nothing with nothing finds every text unlikely.
fn model(script: crate::evaluate::scripted::Script) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(ScriptedModel::new(script)?))
}

fn args(data: &Path) -> EvaluateArgs {
    EvaluateArgs {
        stage: StageArgs { config: None, run_dir: None, set: Vec::new(), json: false },
        model: Some("tuned".into()),
        judge: None,
        against: Some("base".into()),
        contamination: true,
        tasks: Vec::new(),
        data: Some(data.to_owned()),
        output: None,
        limit: None,
        num_fewshot: None,
        apply_chat_template: false,
        fewshot_as_multiturn: true,
        system_instruction: String::new(),
        think_end_token: String::new(),
        compare: Vec::new(),
        fail_on_regression: false,
        check_golden: None,
        benchmarks: None,
    }
}

/// Knows one training item by heart.
fn knows_one(_context: &str) -> String {
    "Question: What is seen 2?\nAnswer: #### 1".to_owned()
}

#[test]
fn a_model_that_knows_the_training_split_has_a_positive_delta() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_benchmark(folder.path())?;
    let out = folder.path().join("out");
    let found = run_models(&args(folder.path()), &out, &Config::default(), &mut |role| {
        model(if role == Role::Base { answers_wrong } else { knows_one })
    })?;
    // A token per byte; "Question: What is seen 0?\nAnswer: #### 1" has as many as with "news".
    let tokens = "Question: What is seen 0?\nAnswer: #### 1".len() as f64;
    let [base, tuned] = &found.losses[..] else { panic!("two models, one benchmark: {found:?}") };
    assert_eq!((base.model.as_str(), tuned.model.as_str()), ("base", "tuned"));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} instead of {b}");
    close(base.test_loss, 10.5 / tokens);
    close(base.delta, 0.0);
    close(tuned.test_loss, 10.5 / tokens);
    close(tuned.train_loss, (3.0 * 10.5 + 0.25) / (4.0 * tokens));
    close(tuned.delta_percent, 100.0 * tuned.delta / tuned.test_loss);
    assert!(tuned.delta > 0.0 && tuned.delta_ci95.is_some_and(|[low, high]| low <= tuned.delta && tuned.delta <= high));
    assert_eq!((tuned.test_items, tuned.train_items, tuned.failed), (4, 4, 0));
    assert_eq!(records::read_json::<Contamination>(&out.join("contamination.json"))?, found);
    assert!(found.table().contains("gsm8k"), "{}", found.table());
    Ok(())
}

#[test]
fn a_folder_without_two_splits_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = run_models(&args(folder.path()), folder.path(), &Config::default(), &mut |_| model(answers_wrong))
        .expect_err("there is no benchmark");
    assert_eq!(error::exit_code(&error), 2);
    assert!(error.to_string().contains("gsm8k/train.jsonl"), "{error}");
}

#[test]
fn a_run_scores_its_tasks_with_and_without_leaked_items_and_asks_each_model_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    write_benchmark(&data)?;
    let mut config = Config::default();
    config.evaluate.tasks = vec!["primer".into()];
    config.evaluate.data_dir = data;
    config.evaluate.limit = 4;
    config.evaluate.base_fewshot = 0;
    config.evaluate.bootstrap_iters = 100;
    config.evaluate.apply_chat_template = false;
    config.evaluate.contamination_items = 3;
    config.student.model = "no-such-directory".into();
    let run_dir = RunDir::open(&folder.path().join("run"), &config)?;
    fs::create_dir_all(run_dir.stage_file("train", "student"))?;
    fs::write(run_dir.stage_file("train", "student").join("config.json"), "{}")?;
    // The second question was found in a training row; the first file's item is no item of the task.
    let rows = ["primer item 1: \"x\"", "gsm8k/train.jsonl item 0: \"y\""];
    let rows: String = rows
        .iter()
        .map(|evidence| json!({"id": "a", "reason": "contaminated", "evidence": evidence}).to_string() + "\n")
        .collect();
    fs::create_dir_all(run_dir.stage("curate"))?;
    fs::write(run_dir.stage_file("curate", "rejected.jsonl"), rows)?;

    /// Right on the second question alone, which is the leaked one.
    fn leaked_only(prompt: &str) -> String {
        let split = primer::Primer.load("".as_ref(), false).expect("the primer is built in");
        if prompt.contains(&split.documents[1].text) { answers_right(prompt) } else { answers_wrong(prompt) }
    }
    let evaluate = || -> Result<Vec<Role>> {
        let roles = RefCell::new(Vec::new());
        run(&config, &run_dir, &mut |role| {
            roles.borrow_mut().push(role);
            model(if role == Role::Base { answers_wrong } else { leaked_only })
        })?;
        Ok(roles.into_inner())
    };
    assert_eq!(evaluate()?, [Role::Base, Role::Tuned]);
    let path = run_dir.stage_file("evaluate", "contamination.json");
    let found: Contamination = records::read_json(&path)?;
    assert_eq!((found.leaked_items, found.leaked_items_not_found), (2, 0));
    let row = &found.scores[0];
    assert_eq!((row.task.as_str(), row.n, row.n_clean), ("primer", 4, 3));
    assert_eq!((row.base, row.tuned, row.tuned_clean), (0.0, 0.25, Some(0.0)));
    assert_eq!((found.losses.len(), found.losses[0].test_items), (2, 3));
    let before = fs::read(&path)?;
    assert_eq!(evaluate()?, [], "what is on disk is not asked again");
    assert_eq!(fs::read(&path)?, before);
    Ok(())
}
