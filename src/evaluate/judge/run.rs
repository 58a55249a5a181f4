//! Where comparisons come from: a run's held-out questions, or files that are named on the command line.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    Judged, Judging, Side, VERSION,
    prompt::JudgePrompt,
    questions::{self, Fields, Question},
};
use crate::{
    config::Config,
    error::usage,
    evaluate::{EvaluateArgs, Role, RoleLoader, results::Finished, stage},
    model_dir,
    run_dir::RunDir,
    seed,
};

/// The task of a run's held-out questions.
const GLAN_TEST: &str = "glan_test";

/// Finds what is wrong with `[evaluate.judge]` before the stages ahead of it have taken their time.
///
/// **Errors**: usage, for a judge that is nowhere or a template that does not work.
pub fn check(config: &Config) -> Result<()> {
    let judge = &config.evaluate.judge;
    if judge.model.is_empty() {
        return Ok(());
    }
    model_dir::resolve(&judge.model)?;
    JudgePrompt::load(&judge.template).map(drop)
}

/// The comparison of a run's base and tuned model on `curate/test.jsonl`.
///
/// `None` where no judge is named, there is nothing to ask, or the same comparison is finished.
pub fn of_run(config: &Config, run_dir: &RunDir, base_key: &str, tuned_key: &str) -> Result<Option<Judging>> {
    let judge = &config.evaluate.judge;
    if judge.model.is_empty() {
        return Ok(None);
    }
    let path = run_dir.stage_file("curate", "test.jsonl");
    let fields = questions::fields(&run_dir.stage_file("generate", "taxonomy.json"));
    let all = if path.is_file() { questions::read(&path, &fields)? } else { Vec::new() };
    let chosen = questions::first_of_each_discipline(all, judge.questions_per_discipline);
    if chosen.is_empty() {
        tracing::warn!("nothing is judged: `{}` holds no question; set `curate.test_fraction` above 0", path.display());
        return Ok(None);
    }
    let folder = run_dir.stage_file("evaluate", "judge").join(GLAN_TEST);
    let chat = config.evaluate.apply_chat_template.to_string();
    let judging = judging(config, GLAN_TEST, folder, chosen, &[base_key, tuned_key, &chat])?;
    if Finished::find(&judging.folder, &judging.hash).is_some() {
        tracing::debug!("`{}` is finished", judging.folder.display());
        return Ok(None);
    }
    Ok(Some(judging))
}

fn judging(config: &Config, name: &str, folder: PathBuf, questions: Vec<Question>, keys: &[&str]) -> Result<Judging> {
    let judge = &config.evaluate.judge;
    let think_end_token = &config.evaluate.think_end_token;
    let prompt = JudgePrompt::load(&judge.template)?;
    let judge_key = stage::model_key(&judge.model, config)?;
    let rows: Vec<String> =
        questions.iter().map(|question| format!("{} {:?}", question.row, question.groups)).collect();
    let settings =
        format!("{VERSION} {judge:?} {think_end_token:?} {} {}", config.seed, config.evaluate.bootstrap_iters);
    let mut parts = vec![name, &prompt.source, &judge_key, &settings];
    parts.extend(keys);
    parts.extend(rows.iter().map(String::as_str));
    let hash = seed::record_id(&parts);
    Ok(Judging {
        name: name.to_owned(),
        folder,
        questions,
        prompt,
        config: judge.clone(),
        think_end_token: think_end_token.to_owned(),
        seed: config.seed,
        bootstrap_iters: config.evaluate.bootstrap_iters,
        hash,
        answered: [None, None],
    })
}

/// `glan evaluate --judge J --model A --against B`: compares two models on files of questions; one is loaded at a time.
///
/// `config.evaluate.judge.model` is the judge. Answers and verdicts that are on disk are not asked for again.
///
/// **Errors**: usage, for a task that is neither `glan_test` nor a `.jsonl` file, or without questions.
pub fn run_models(args: &EvaluateArgs, output: &Path, config: &Config, load: &mut RoleLoader) -> Result<Vec<Judged>> {
    check(config)?;
    let named = |option: &Option<String>| option.clone().unwrap_or_default();
    let keys = [stage::model_key(&named(&args.against), config)?, stage::model_key(&named(&args.model), config)?];
    let mut comparisons = Vec::new();
    for task in &args.tasks {
        let (name, path) = question_file(task, args.data.as_deref())?;
        let mut questions = questions::read(&path, &Fields::new())?;
        questions.truncate(args.limit.unwrap_or(usize::MAX));
        if questions.is_empty() {
            return Err(usage(format!("`{}` holds no question", path.display())));
        }
        let chat = args.apply_chat_template.to_string();
        let folder = output.join("judge").join(&name);
        comparisons.push(judging(config, &name, folder, questions, &[&keys[0], &keys[1], &chat])?);
    }
    for (role, side) in [(Role::Base, Side::Base), (Role::Tuned, Side::Tuned)] {
        let mut model = load(role)?;
        for judging in &mut comparisons {
            judging.answer(side, args.apply_chat_template, model.as_mut())?;
        }
    }
    let mut judge = load(Role::Judge)?;
    comparisons.iter().map(|judging| judging.judge(judge.as_mut())).collect()
}

/// Name and place of a task's questions.
fn question_file(task: &str, data: Option<&Path>) -> Result<(String, PathBuf)> {
    let path = Path::new(task);
    match (path.extension().is_some_and(|extension| extension == "jsonl"), data) {
        (true, _) => Ok((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path.to_owned())),
        (false, Some(data)) if task == GLAN_TEST => Ok((task.to_owned(), data.join("test.jsonl"))),
        _ => Err(usage(format!(
            "--judge takes files of questions (`NAME.jsonl`) as --tasks, or `{GLAN_TEST}` with --data FOLDER for its \
             `test.jsonl`; found `{task}`"
        ))),
    }
}
