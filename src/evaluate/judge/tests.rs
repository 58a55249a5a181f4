//! Comparisons end to end with scripted models and judges.

use std::{cell::RefCell, collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Judged, PositionBias, run_models};
use crate::{
    cli::StageArgs,
    config::Config,
    error,
    evaluate::{
        EvaluateArgs, Role, run,
        scripted::{Script, ScriptedModel, answers_right},
    },
    language_model::LanguageModel,
    records,
    run_dir::RunDir,
};

/// A model directory, of which only the files are looked at.
const SOME_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/llama");

fn base(_prompt: &str) -> String {
    "I do not know.".to_owned()
}

/// Knows its physics, and the primer.
fn tuned(prompt: &str) -> String {
    match prompt {
        _ if prompt.contains("physics") => "A GOOD answer.".to_owned(),
        _ if prompt.contains("Explain") => "I do not know.".to_owned(),
        _ => answers_right(prompt),
    }
}

/// The two answers that a judge is shown.
fn shown(prompt: &str) -> [&str; 2] {
    [1, 2].map(|place| {
        let (begin, end) = (format!("[Begin of assistant {place}'s answer]\n"), format!("\n[End of assistant {place}"));
        prompt.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).expect("the prompt shows both answers").0
    })
}

/// Reads the answers, whatever their order.
fn fair(prompt: &str) -> String {
    let [first, second] = shown(prompt).map(|answer| if answer.contains("GOOD") { 9 } else { 4 });
    format!("{first} {second}\nOne knows it.")
}

/// Looks at the place alone.
fn biased(prompt: &str) -> String {
    assert_eq!(shown(prompt).len(), 2);
    "8 5".to_owned()
}

/// Gives no scores where a question is about chemistry, if the base model stands in front.
fn moody(prompt: &str) -> String {
    if prompt.contains("chemistry") { "Both are fine.".to_owned() } else { fair(prompt) }
}

fn questions() -> String {
    let row = |(index, discipline): (usize, &str)| {
        let question = format!("Explain {discipline}, part {index}.");
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": "Reference."}]);
        json!({"id": index.to_string(), "discipline": discipline, "messages": messages}).to_string() + "\n"
    };
    ["physics", "chemistry", "physics", "biology"].into_iter().enumerate().map(row).collect()
}

fn config() -> Config {
    let mut config = Config::default();
    config.evaluate.tasks = vec!["primer".into()];
    config.evaluate.limit = 3;
    config.evaluate.base_fewshot = 0;
    config.evaluate.bootstrap_iters = 200;
    config.evaluate.judge.model = SOME_MODEL.into();
    config.student.model = "no-such-directory".into();
    config
}

fn model(role: Role, judge: Script, fail_after: Option<usize>) -> Result<Box<dyn LanguageModel>> {
    let script = match role {
        Role::Base => base,
        Role::Tuned => tuned,
        Role::Judge => judge,
    };
    let mut model = ScriptedModel::new(script)?;
    model.fail_after = fail_after;
    model.give_chat_template()?;
    Ok(Box::new(model))
}

/// `glan evaluate --judge` with this judge.
fn judge(judge: Script, tasks: &[String], folder: &Path) -> Result<Vec<Judged>> {
    let args = EvaluateArgs {
        stage: StageArgs { config: None, run_dir: None, set: Vec::new(), json: false },
        model: Some("tuned".into()),
        judge: Some(SOME_MODEL.into()),
        against: Some("base".into()),
        contamination: false,
        tasks: tasks.to_vec(),
        data: Some(folder.to_owned()),
        output: None,
        limit: None,
        num_fewshot: None,
        apply_chat_template: true,
        fewshot_as_multiturn: true,
        system_instruction: String::new(),
        think_end_token: String::new(),
        compare: Vec::new(),
        fail_on_regression: false,
        check_golden: None,
        benchmarks: None,
    };
    run_models(&args, &folder.join("out"), &config(), &mut |role| model(role, judge, None))
}

#[test]
fn a_fair_judge_finds_the_planted_gap_by_discipline() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("test.jsonl"), questions())?;
    let judged = judge(fair, &["glan_test".into()], folder.path())?.remove(0);
    let summary = &judged.summary;
    // 9 against 4 on two of four questions.
    assert_eq!((summary.overall.n, summary.overall.gap), (4, 2.5));
    assert_eq!((summary.overall.win, summary.overall.tie, summary.overall.lose), (0.5, 0.5, 0.0));
    let gaps: Vec<_> = summary.groups.iter().map(|row| (row.name.as_str(), row.n, row.gap)).collect();
    assert_eq!(gaps, [("biology", 1, 0.0), ("chemistry", 1, 0.0), ("physics", 2, 5.0)]);
    assert_eq!(summary.position_bias, PositionBias { flips: 0.0, first_place_advantage: 0.0 });
    assert_eq!((summary.verdicts, summary.unparsed, summary.too_long), (8, 0, 0));

    let out = folder.path().join("out/judge/glan_test");
    let names: Vec<String> = fs::read_dir(&out)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let file = |start: &str| names.iter().find(|name| name.starts_with(start)).expect("the file was written");
    let results: Value = records::read_json(&out.join(file("results_")))?;
    assert_eq!(results["results"]["glan_test"]["score_gap,none"], 2.5);
    assert_eq!(results["groups"]["glan_test_discipline_physics"]["score_gap,none"], 5.0);
    let samples: Vec<Value> = records::read_jsonl(&out.join(file("samples_glan_test_")))?;
    assert_eq!(samples[0]["scores"], json!({"base_first": [4.0, 9.0], "tuned_first": [4.0, 9.0]}));
    assert_eq!(samples[0]["answers"]["tuned"], "A GOOD answer.");
    assert_eq!(samples[1]["score_gap"], 0.0);
    Ok(())
}

#[test]
fn a_judge_that_looks_at_the_place_alone_gives_no_gap_and_is_found_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("evol.jsonl");
    fs::write(&path, questions())?;
    let judged = judge(biased, &[path.to_string_lossy().into_owned()], folder.path())?.remove(0);
    assert_eq!((judged.name.as_str(), judged.summary.overall.gap, judged.summary.overall.tie), ("evol", 0.0, 1.0));
    assert_eq!(judged.summary.position_bias, PositionBias { flips: 1.0, first_place_advantage: 3.0 });
    Ok(())
}

#[test]
fn verdicts_without_scores_are_counted_and_their_questions_left_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("test.jsonl"), questions())?;
    let summary = judge(moody, &["glan_test".into()], folder.path())?.remove(0).summary;
    assert_eq!((summary.verdicts, summary.unparsed, summary.overall.n), (8, 2, 3));
    assert!((summary.overall.gap - 10.0 / 3.0).abs() < 1e-12);
    Ok(())
}

#[test]
fn what_names_no_questions_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    for task in ["gsm8k", "nowhere.jsonl", "glan_test"] {
        let error = judge(fair, &[task.into()], folder.path()).expect_err(task);
        assert_eq!(error::exit_code(&error), 2, "{error:#}");
    }
}

/// A run with held-out questions; the roles in the order in which their models were loaded.
fn evaluate(folder: &Path, fail_after: Option<usize>) -> Result<(Result<()>, Vec<Role>)> {
    let run_dir = RunDir::open(folder, &config())?;
    for (stage, name, text) in [
        ("train", "student/config.json", "{}".to_owned()),
        ("curate", "test.jsonl", questions()),
        (
            "generate",
            "taxonomy.json",
            json!({"fields": [{"name": "Science", "subfields": [{"disciplines": [{"name": "physics"}]}]}]}).to_string(),
        ),
    ] {
        let path = run_dir.stage_file(stage, name);
        fs::create_dir_all(path.parent().expect("a folder"))?;
        fs::write(path, text)?;
    }
    let roles = RefCell::new(Vec::new());
    let outcome = run(&config(), &run_dir, &mut |role| {
        roles.borrow_mut().push(role);
        model(role, fair, fail_after)
    });
    Ok((outcome.map(drop), roles.into_inner()))
}

/// The files of the comparison without their dates.
fn snapshot(folder: &Path) -> Result<BTreeMap<String, String>> {
    let folder = folder.join("evaluate/judge/glan_test");
    let mut files = BTreeMap::new();
    for name in ["base/responses.jsonl", "tuned/responses.jsonl", "judge/responses.jsonl", "judged.json"] {
        files.insert(name.to_owned(), fs::read_to_string(folder.join(name))?);
    }
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".jsonl").and_then(|name| name.split("_20").next()) {
            assert!(files.insert(name.to_owned(), fs::read_to_string(&path)?).is_none(), "{name} is there twice");
        }
    }
    Ok(files)
}

#[test]
fn a_run_judges_its_held_out_questions_and_survives_a_kill_anywhere() -> Result<()> {
    let whole = tempfile::tempdir()?;
    let (outcome, roles) = evaluate(whole.path(), None)?;
    outcome?;
    assert_eq!(roles, [Role::Base, Role::Tuned, Role::Judge]);
    let judged: Judged = records::read_json(&whole.path().join("evaluate/judge/glan_test/judged.json"))?;
    let first = &judged.summary.groups[0];
    assert_eq!((first.by.as_str(), first.name.as_str(), first.gap), ("field", "Science", 5.0));
    let expected = snapshot(whole.path())?;
    let (outcome, roles) = evaluate(whole.path(), None)?;
    outcome?;
    assert_eq!(roles, [], "a finished comparison loads no model");
    // Each student serves 3 + 4 requests, the judge 8.
    for kill_after in [0, 2, 3, 5, 7] {
        let folder = tempfile::tempdir()?;
        assert!(evaluate(folder.path(), Some(kill_after))?.0.is_err(), "killed after {kill_after}");
        evaluate(folder.path(), None)?.0?;
        assert_eq!(snapshot(folder.path())?, expected, "killed after {kill_after}");
    }
    Ok(())
}
