//! `glan run`, and the stage commands that need a model loaded for them: the only place where verbs meet the engine.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::Instant,
};

use anyhow::Result;
use candle_core::Device;
use serde_json::{Value, json};

use crate::{
    cli::StageArgs,
    config::Config,
    curate, engine,
    error::{Failure, usage},
    evaluate::{self, Comparison, EvaluateArgs, Role, Verdict},
    generate, interrupt,
    language_model::LanguageModel,
    model_dir, records, report,
    run_dir::RunDir,
    telemetry::print_result,
    train,
};

/// `glan run`: every stage that is not finished yet, in order.
pub fn run(args: &StageArgs) -> Result<()> {
    let config = load_config(args, "run")?;
    let device = config.device.open()?;
    // What can be found wrong now must not be found after hours of generating and training.
    if config.student.model.is_empty() {
        return Err(usage("no student is named: set `student.model` to a directory or `org/name`"));
    }
    model_dir::resolve(&config.student.model)?;
    evaluate::check(&config)?;
    let run_dir = RunDir::open(&args.run_dir_path(), &config)?;

    stage("generate", || generate_stage(&config, &run_dir, &device))?;
    stage("curate", || {
        curate::run(&config, &run_dir)?;
        let rows = |name: &str| lines(&run_dir.stage_file("curate", name));
        Ok(format!(
            "{} rows to train on, {} for validation, {} for testing, {} rejected",
            rows("train.jsonl"),
            rows("valid.jsonl"),
            rows("test.jsonl"),
            rows("rejected.jsonl")
        ))
    })?;
    stage("train", || {
        train::run(&config, &run_dir)?;
        Ok(format!("student in `{}`", run_dir.stage_file("train", "student").display()))
    })?;
    let mut verdict = None;
    stage("evaluate", || {
        let reached = evaluate_stage(&config, &run_dir, &device)?;
        let summary = sentence(&reached);
        verdict = Some(reached);
        Ok(summary)
    })?;
    let mut page = None;
    stage("report", || {
        let path = report::run(&config, &run_dir)?;
        let summary = format!("`{}`", path.display());
        page = Some(path);
        Ok(summary)
    })?;

    if args.json {
        print_result(json!({"verdict": verdict, "run_dir": run_dir.root()}));
        return Ok(());
    }
    print_comparison(&config, &run_dir)?;
    if let Some(page) = page {
        print_result(format!("\nreport: {}", page.display()));
    }
    Ok(())
}

/// `glan generate`.
pub fn generate(args: &StageArgs) -> Result<()> {
    let config = load_config(args, "generate")?;
    let device = config.device.open()?;
    let run_dir = RunDir::open(&args.run_dir_path(), &config)?;
    let summary = generate_stage(&config, &run_dir, &device)?;
    if args.json {
        let answers = lines(&run_dir.stage_file("generate", "answers.jsonl"));
        let stats: Option<Value> = records::read_json(&run_dir.stage_file("generate", "stats.json")).ok();
        print_result(json!({"answers": answers, "stats": stats, "run_dir": run_dir.root()}));
    } else {
        print_result(format!("{summary} in `{}`", run_dir.stage("generate").display()));
    }
    Ok(())
}

/// `glan evaluate`.
pub fn evaluate(args: &EvaluateArgs) -> Result<()> {
    if let (Some(golden), Some(benchmarks)) = (&args.check_golden, &args.benchmarks) {
        return check_golden(golden, benchmarks, args.stage.json);
    }
    if let Some(model) = &args.model {
        return evaluate_model(args, model);
    }
    let only_with_model = !args.tasks.is_empty()
        || args.data.is_some()
        || args.output.is_some()
        || args.limit.is_some()
        || args.num_fewshot.is_some()
        || args.apply_chat_template;
    if only_with_model {
        return Err(usage(
            "--tasks, --data, --output, --limit, --num-fewshot and --apply-chat-template go with --model; \
             in a run directory set the keys of `[evaluate]`, such as --set evaluate.limit=100",
        ));
    }
    let config = load_config(&args.stage, "evaluate")?;
    let device = config.device.open()?;
    let run_dir = RunDir::open(&args.stage.run_dir_path(), &config)?;
    let verdict = evaluate_stage(&config, &run_dir, &device)?;
    if args.stage.json {
        print_result(json!({"verdict": verdict, "run_dir": run_dir.root()}));
        return Ok(());
    }
    print_comparison(&config, &run_dir)
}

/// `glan report`.
pub fn report(args: &StageArgs) -> Result<()> {
    let config = load_config(args, "report")?;
    let run_dir = RunDir::open(&args.run_dir_path(), &config)?;
    let page = report::run(&config, &run_dir)?;
    if args.json {
        print_result(json!({"report": page, "run_dir": run_dir.root()}));
    } else {
        print_result(page.display());
    }
    Ok(())
}

/// `glan evaluate --check-golden`.
///
/// **Errors**: a regression, where anything differs.
fn check_golden(golden: &Path, benchmarks: &Path, json: bool) -> Result<()> {
    const DIFFERENCES: usize = 10;
    let agreement = evaluate::golden::check(golden, benchmarks)?;
    print_result(if json { json!(agreement).to_string() } else { agreement.summary(DIFFERENCES) });
    if agreement.is_whole() {
        return Ok(());
    }
    Err(Failure::Regression("prompts, scores or verdicts differ from lm-evaluation-harness's".to_owned()).into())
}

/// `glan evaluate --model`.
fn evaluate_model(args: &EvaluateArgs, name: &str) -> Result<()> {
    let config = args.stage.load_config()?;
    let plan = evaluate::plan_model(args)?;
    let Some(output) = &args.output else { return Err(usage("--model needs --output")) };
    let device = config.device.open()?;
    let mut model = load_student(name, &config, &device)?;
    let results = evaluate::run_model(&plan, output, model.as_mut())?;
    if args.stage.json {
        print_result(
            json!({"model": name, "results": results["results"], "tokens": results["tokens"], "output": output}),
        );
    } else {
        print_result(evaluate::table::results(&results));
    }
    Ok(())
}

/// The configuration of a command that works in a run directory.
///
/// **Errors**: usage, when none is named.
fn load_config(args: &StageArgs, command: &str) -> Result<Config> {
    let config = args.load_config()?;
    let is_saved = args.run_dir.as_ref().is_some_and(|folder| folder.join("run.toml").is_file());
    if args.config.is_none() && !is_saved {
        return Err(usage(format!(
            "`glan {command}` needs a configuration: -c FILE (see configs/), or the --run-dir of an earlier run"
        )));
    }
    Ok(config)
}

/// Runs one stage and says on stderr what came of it.
fn stage(name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    interrupt::check()?;
    let begun = Instant::now();
    let summary = work()?;
    tracing::info!("{name}: {summary} ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

fn generate_stage(config: &Config, run_dir: &RunDir, device: &Device) -> Result<String> {
    // The stage owns the teacher once it is loaded, so its memory is free again when the stage returns.
    generate::run(config, run_dir, &mut || {
        let teacher = &config.teacher;
        if teacher.model.is_empty() {
            return Err(usage("no teacher is named: set `teacher.model` to a directory or `org/name`"));
        }
        engine::load(&teacher.model, &config.engine, device, teacher.dtype, teacher.max_model_len)
    })?;
    Ok(format!("{} question-answer pairs", lines(&run_dir.stage_file("generate", "answers.jsonl"))))
}

fn evaluate_stage(config: &Config, run_dir: &RunDir, device: &Device) -> Result<Verdict> {
    let tuned = run_dir.stage_file("train", "student");
    evaluate::run(config, run_dir, &mut |role| match role {
        Role::Base => load_student(&config.student.model, config, device),
        Role::Tuned => load_student(&tuned.to_string_lossy(), config, device),
    })
}

fn load_student(model: &str, config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    engine::load(model, &config.engine, device, config.student.dtype, config.student.max_model_len)
}

fn print_comparison(config: &Config, run_dir: &RunDir) -> Result<()> {
    let comparison: Comparison = records::read_json(&run_dir.stage_file("evaluate", "comparison.json"))?;
    print_result(evaluate::table::comparison(&comparison, config.evaluate.base_fewshot));
    Ok(())
}

/// The verdict in words.
fn sentence(verdict: &Verdict) -> String {
    format!(
        "{} went from {:.1}% to {:.1}% (p = {:.2e})",
        verdict.task,
        100.0 * verdict.base,
        100.0 * verdict.tuned,
        verdict.p_value
    )
}

/// Lines of a file, for summaries; a missing file has none.
fn lines(path: &Path) -> usize {
    File::open(path).map_or(0, |file| BufReader::new(file).split(b'\n').count())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::error::exit_code;

    fn args(config: Option<&Path>, run_dir: &Path) -> StageArgs {
        let config = config.map(Path::to_owned);
        StageArgs { config, run_dir: Some(run_dir.to_owned()), set: Vec::new(), json: false }
    }

    #[test]
    fn a_run_without_a_configuration_is_a_usage_error_that_leaves_nothing_behind() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let run_dir = folder.path().join("run");
        for command in [run, generate, report] {
            let error = command(&args(None, &run_dir)).expect_err("no configuration is named");
            assert_eq!(exit_code(&error), 2, "{error:#}");
        }
        assert!(!run_dir.exists());
        Ok(())
    }

    #[test]
    fn a_mistake_in_a_late_stage_is_found_before_the_first_one_begins() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.toml");
        for (text, named) in [
            ("[student]\nmodel = \"\"\n".to_owned(), "student.model"),
            ("[student]\nmodel = \"nowhere/nothing\"\n".to_owned(), "nowhere/nothing"),
            (
                format!("[student]\nmodel = {:?}\n[evaluate]\ntasks = [\"prmier\"]\n", folder.path()),
                "there is no task `prmier`",
            ),
        ] {
            std::fs::write(&config, text)?;
            let error = run(&args(Some(&config), &folder.path().join("run"))).expect_err("the configuration is wrong");
            assert_eq!(exit_code(&error), 2, "{error:#}");
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
        assert!(!folder.path().join("run").exists());
        Ok(())
    }

    #[test]
    fn options_of_a_single_model_are_refused_in_a_run_directory() {
        let args = EvaluateArgs {
            stage: args(None, Path::new("run")),
            model: None,
            tasks: vec!["primer".into()],
            data: None,
            output: None,
            limit: None,
            num_fewshot: None,
            apply_chat_template: false,
            check_golden: None,
            benchmarks: None,
        };
        let error = evaluate(&args).expect_err("--tasks goes with --model");
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("--set evaluate."), "{error}");
    }

    #[test]
    fn the_run_directory_takes_the_configurations_name() {
        let stage =
            StageArgs { config: Some("configs/quick.toml".into()), run_dir: None, set: Vec::new(), json: false };
        assert_eq!(stage.run_dir_path(), PathBuf::from("runs/quick"));
    }

    #[test]
    fn the_summary_counts_lines_and_a_missing_file_has_none() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("a.jsonl");
        assert_eq!(lines(&path), 0);
        std::fs::write(&path, "{}\n{}\n")?;
        assert_eq!(lines(&path), 2);
        Ok(())
    }
}
