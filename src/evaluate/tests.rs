//! The stage end to end with scripted models.

use std::{cell::RefCell, collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde_json::Value;

use super::{
    Comparison, Role, Verdict,
    plan::{Plan, PlanOptions},
    prompt::PromptStyle,
    run, run_model,
    scripted::{Script, ScriptedModel, answers_right, answers_wrong},
    table,
};
use crate::{config::Config, error, language_model::LanguageModel, records, run_dir::RunDir};

fn config() -> Config {
    let mut config = Config::default();
    config.evaluate.tasks = vec!["primer".into(), "primer_mc".into(), "gsm8k".into()];
    config.evaluate.data_dir = "nowhere".into();
    config.evaluate.limit = 12;
    config.evaluate.bootstrap_iters = 100;
    config.student.model = "no-such-directory".into();
    config
}

fn open(folder: &Path, config: &Config) -> Result<RunDir> {
    let run_dir = RunDir::open(folder, config)?;
    let student = run_dir.stage_file("train", "student");
    fs::create_dir_all(&student)?;
    fs::write(student.join("config.json"), "{}")?;
    Ok(run_dir)
}

/// Runs the stage; returns the verdict and the roles in the order in which they were loaded.
fn evaluate(config: &Config, run_dir: &RunDir, fail_after: Option<usize>) -> (Result<Verdict>, Vec<Role>) {
    let roles = RefCell::new(Vec::new());
    let verdict = run(config, run_dir, &mut |role| -> Result<Box<dyn LanguageModel>> {
        roles.borrow_mut().push(role);
        let script: Script = if role == Role::Base { answers_wrong } else { answers_right };
        let mut model = ScriptedModel::new(script)?;
        model.fail_after = fail_after;
        model.give_chat_template()?;
        Ok(Box::new(model))
    });
    (verdict, roles.into_inner())
}

/// Every file under a folder by its relative path, dates taken out.
fn snapshot(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for role in ["base", "base_fewshot", "tuned"] {
        for entry in fs::read_dir(folder.join("evaluate").join(role))? {
            let path = entry?.path();
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            let mut text = fs::read_to_string(&path)?;
            let undated = name.split("_20").next().expect("split gives a first part").to_owned();
            if name.starts_with("results_") {
                let mut results: Value = serde_json::from_str(&text)?;
                // What it cost is that of the last start.
                for key in ["date", "tokens", "total_evaluation_time_seconds"] {
                    results[key] = Value::Null;
                }
                text = results.to_string();
            }
            let key = format!("{role}/{undated}");
            assert!(files.insert(key.clone(), text).is_none(), "`{key}` is there twice");
        }
    }
    files.insert("comparison.json".into(), fs::read_to_string(folder.join("evaluate/comparison.json"))?);
    Ok(files)
}

#[test]
fn a_run_compares_base_and_tuned_and_loads_each_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config();
    let run_dir = open(folder.path(), &config)?;
    let (verdict, roles) = evaluate(&config, &run_dir, None);
    let verdict = verdict?;
    assert_eq!(roles, [Role::Base, Role::Tuned]);
    assert_eq!((verdict.task.as_str(), verdict.base, verdict.tuned), ("primer", 0.0, 1.0));
    assert_eq!(verdict.base_fewshot, Some(0.0));
    assert!((verdict.p_value - 2.0 / 4096.0).abs() < 1e-12, "{}", verdict.p_value);
    let comparison: Comparison = records::read_json(&run_dir.stage_file("evaluate", "comparison.json"))?;
    let metrics: Vec<_> = comparison.tasks.iter().map(|row| (row.task.as_str(), row.metric.as_str(), row.n)).collect();
    let expected =
        [("primer", "exact_match,extract", 12), ("primer_mc", "acc,none", 12), ("primer_mc", "acc_norm,none", 12)];
    assert_eq!(metrics, expected);
    assert_eq!(comparison.by_discipline.iter().map(|row| row.n).sum::<usize>(), 12);
    assert_eq!(comparison.skipped[0].task, "gsm8k");
    assert!(table::comparison(&comparison, 3).contains("gsm8k skipped"));
    Ok(())
}

#[test]
fn a_finished_evaluation_is_kept_and_loads_no_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config();
    let run_dir = open(folder.path(), &config)?;
    let (first, _) = evaluate(&config, &run_dir, None);
    let before = snapshot(folder.path())?;
    let (second, roles) = evaluate(&config, &run_dir, None);
    assert_eq!(roles, []);
    assert_eq!(first?, second?);
    assert_eq!(snapshot(folder.path())?, before);
    // Another student is another evaluation, and replaces the old one; the base is kept.
    fs::write(run_dir.stage_file("train", "student").join("model.safetensors"), "weights")?;
    let (_, roles) = evaluate(&config, &run_dir, None);
    assert_eq!(roles, [Role::Tuned]);
    assert_eq!(snapshot(folder.path())?.len(), before.len());
    Ok(())
}

#[test]
fn a_kill_anywhere_and_a_second_start_give_the_same_files() -> Result<()> {
    let config = config();
    let whole = tempfile::tempdir()?;
    evaluate(&config, &open(whole.path(), &config)?, None).0?;
    let expected = snapshot(whole.path())?;
    // The base model serves 12 + 48 requests and 12 more with examples.
    for kill_after in [0, 5, 12, 33, 60, 70] {
        let folder = tempfile::tempdir()?;
        let run_dir = open(folder.path(), &config)?;
        let (killed, _) = evaluate(&config, &run_dir, Some(kill_after));
        assert!(killed.is_err(), "killed after {kill_after}");
        evaluate(&config, &run_dir, None).0?;
        assert_eq!(snapshot(folder.path())?, expected, "killed after {kill_after}");
    }
    Ok(())
}

#[test]
fn a_missing_student_names_the_command_that_makes_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config();
    let (verdict, roles) = evaluate(&config, &RunDir::open(folder.path(), &config)?, None);
    let failure = verdict.expect_err("there is no student");
    assert_eq!(error::exit_code(&failure), 3);
    assert!(failure.to_string().contains("glan train -c"), "{failure}");
    assert_eq!(roles, []);
    Ok(())
}

#[test]
fn one_models_results_have_the_harness_keys() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = PlanOptions { data_dir: "".into(), limit: 5, num_fewshot: Some(2), style: PromptStyle::plain() };
    let plan = Plan::new(&["primer".into(), "primer_mc".into()], options)?;
    let mut model = ScriptedModel::new(answers_right)?;
    let results = run_model(&plan, folder.path(), &mut model)?;
    assert_eq!(results["results"]["primer"]["exact_match,extract"], 1.0);
    assert_eq!(results["results"]["primer"]["exact_match_stderr,extract"], 0.0);
    assert_eq!(results["results"]["primer_mc"]["acc,none"], 1.0);
    assert_eq!(results["n-shot"]["primer"], 2);
    assert_eq!(results["n-samples"]["primer"]["effective"], 5);
    for key in ["group_subtasks", "configs", "versions", "higher_is_better", "config", "date", "task_hashes"] {
        assert!(!results[key].is_null(), "{key}");
    }
    let served = model.served;
    run_model(&plan, folder.path(), &mut model)?;
    assert_eq!(model.served, served, "a finished evaluation is kept");
    let names: Vec<String> = fs::read_dir(folder.path().join("scripted"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    assert_eq!(names.iter().filter(|name| name.starts_with("results_")).count(), 1);
    let samples = names.iter().find(|name| name.starts_with("samples_primer_mc_")).expect("samples were written");
    let rows: Vec<Value> = records::read_jsonl(&folder.path().join("scripted").join(samples))?;
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0]["filtered_resps"][0].as_array().map(Vec::len), Some(2));
    assert_eq!(rows[0]["acc"], 1.0);
    assert!(rows[0]["arguments"]["gen_args_3"]["arg_1"].as_str().is_some_and(|choice| choice.starts_with(' ')));
    Ok(())
}

#[test]
fn a_chat_prompt_without_a_template_is_a_usage_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = PlanOptions { data_dir: "".into(), limit: 1, num_fewshot: None, style: PromptStyle::chat() };
    let plan = Plan::new(&["primer".into()], options)?;
    let failure = run_model(&plan, folder.path(), &mut ScriptedModel::new(answers_right)?);
    assert_eq!(error::exit_code(&failure.expect_err("there is no template")), 2);
    Ok(())
}
