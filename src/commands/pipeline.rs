//! `glan run`, and the stage commands that need a model loaded for them: the only place where verbs meet the engine.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    export::{self, ExportArgs, Format},
    generate::load_teacher,
};
use crate::{
    cli::{RunArgs, StageArgs},
    config::Config,
    curate::{self, CurateArgs},
    device::{Device, DtypeChoice},
    engine,
    error::{Failure, usage},
    evaluate::{self, Comparison, EvaluateArgs, Role, Verdict, contamination::Contamination},
    generate::{self, Extra},
    interrupt,
    language_model::{LanguageModel, TextEncoder},
    model::{BertEncoder, Quantization},
    model_dir, records, report,
    run_dir::RunDir,
    telemetry::print_result,
    train::{self, TrainArgs},
};

/// `glan run`: every stage that is not finished yet, in order.
pub fn run(args: &RunArgs) -> Result<()> {
    let RunArgs { stage: args, fail_on_regression } = args;
    let config = load_config(args, "run")?;
    // Before anything is written: the run ends in training.
    config.device.open_for_training()?;
    let device = Device::Cpu;
    check(&config)?;
    let run_dir = RunDir::open(&args.run_dir_path(), &config)?;
    let (verdict, page) = run_stages(&config, &run_dir, &device, None)?;
    if args.json {
        print_result(json!({"verdict": verdict, "run_dir": run_dir.root()}));
    } else {
        print_comparison(&config, &run_dir)?;
        print_result(format!("\nreport: {}", page.display()));
    }
    gate(*fail_on_regression, || Ok(read_comparison(&run_dir)?.regressions()))
}

/// `glan train`.
pub fn train(args: &TrainArgs) -> Result<()> {
    train::main(args, export_gguf)
}

/// `glan export` of a student that was just written.
fn export_gguf(student: &Path, file: &Path, quantization: Quantization) -> Result<()> {
    export::run(&ExportArgs {
        model: student.to_string_lossy().into_owned(),
        output: file.to_owned(),
        format: Format::Gguf,
        quantization: Some(quantization),
        dtype: None,
        force: true,
        json: false,
    })?;
    Ok(())
}

/// What can be found wrong now must not be found after hours of generating and training.
///
/// **Errors**: usage, as the stages would give them.
pub fn check(config: &Config) -> Result<()> {
    if config.student.model.is_empty() {
        return Err(usage("no student is named: set `student.model` to a directory or `org/name`"));
    }
    model_dir::resolve(&config.student.model)?;
    evaluate::check(config)
}

/// Runs every stage that is not finished yet, in order; `weak` is what `glan generate --weak` takes. Returns the
/// verdict and the report's path.
pub fn run_stages(
    config: &Config,
    run_dir: &RunDir,
    device: &Device,
    weak: Option<&Path>,
) -> Result<(Verdict, PathBuf)> {
    stage("generate", || generate_stage(config, run_dir, device, Extra { weak, only: None }))?;
    stage("curate", || {
        curate::run(config, run_dir, &mut CurateModels(config))?;
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
        train::run(config, run_dir, export_gguf)?;
        Ok(format!("student in `{}`", run_dir.stage_file("train", "student").display()))
    })?;
    let verdict = stage_of("evaluate", || {
        let reached = evaluate_stage(config, run_dir, device)?;
        Ok((sentence(&reached), reached))
    })?;
    let page = stage_of("report", || {
        let path = report::run(config, run_dir)?;
        Ok((format!("`{}`", path.display()), path))
    })?;
    Ok((verdict, page))
}

/// Turns regressions into exit code 4, where that was asked for.
pub fn gate(asked: bool, regressions: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
    if !asked {
        return Ok(());
    }
    match regressions()?.as_slice() {
        [] => Ok(()),
        found => Err(Failure::Regression(format!("worse than before: {}", found.join("; "))).into()),
    }
}

/// `glan curate`.
pub fn curate(args: &CurateArgs) -> Result<()> {
    let config = args.stage.load_config()?;
    curate::main(args, &config, &mut CurateModels(&config))
}

/// `glan evaluate`.
pub fn evaluate(args: &EvaluateArgs) -> Result<()> {
    if let (Some(golden), Some(benchmarks)) = (&args.check_golden, &args.benchmarks) {
        return check_golden(golden, benchmarks, args.stage.json);
    }
    if args.contamination {
        return contamination(args);
    }
    if let Some(judge) = &args.judge {
        return judge_models(args, judge);
    }
    if let [a, b] = args.compare.as_slice() {
        return compare(args, a, b);
    }
    if let Some(model) = &args.model {
        return evaluate_model(args, model);
    }
    let only_with_model = !args.tasks.is_empty()
        || args.data.is_some()
        || args.output.is_some()
        || args.limit.is_some()
        || args.num_fewshot.is_some()
        || args.apply_chat_template
        || !args.system_instruction.is_empty()
        || !args.think_end_token.is_empty();
    if only_with_model {
        return Err(usage(
            "--tasks, --data, --output, --limit and the options of prompts go with --model; in a run directory set the \
             keys of `[evaluate]`, such as --set evaluate.limit=100",
        ));
    }
    let config = load_config(&args.stage, "evaluate")?;
    let device = config.device.open()?;
    let run_dir = RunDir::open(&args.stage.run_dir_path(), &config)?;
    let verdict = evaluate_stage(&config, &run_dir, &device)?;
    if args.stage.json {
        print_result(json!({"verdict": verdict, "run_dir": run_dir.root()}));
    } else {
        print_comparison(&config, &run_dir)?;
    }
    gate(args.fail_on_regression, || Ok(read_comparison(&run_dir)?.regressions()))
}

/// `glan evaluate --compare`.
fn compare(args: &EvaluateArgs, a: &Path, b: &Path) -> Result<()> {
    let config = args.stage.load_config()?;
    let found = evaluate::compare_results(a, b, config.seed, config.evaluate.bootstrap_iters)?;
    print_result(if args.stage.json { json!(found).to_string() } else { evaluate::table::results_comparison(&found) });
    gate(args.fail_on_regression, || Ok(found.regressions()))
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
    if args.against.is_some() {
        return Err(usage("--against goes with --judge or --contamination"));
    }
    let config = args.stage.load_config()?;
    let launcher = std::env::current_exe().context("cannot find the path of this program")?;
    let plan = evaluate::plan_model(args, &config.evaluate.code, &launcher)?;
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

/// `glan evaluate --judge`.
fn judge_models(args: &EvaluateArgs, judge: &str) -> Result<()> {
    let mut config = args.stage.load_config()?;
    judge.clone_into(&mut config.evaluate.judge.model);
    args.think_end_token.clone_into(&mut config.evaluate.think_end_token);
    let (Some(output), Some(tuned), Some(base)) = (&args.output, &args.model, &args.against) else {
        return Err(usage("--judge needs --model, --against and --output"));
    };
    let device = config.device.open()?;
    let judged = evaluate::judge::run_models(args, output, &config, &mut |role| match role {
        Role::Base => load_student(base, &config, &device),
        Role::Tuned => load_student(tuned, &config, &device),
        Role::Judge => load_judge(&config, &device),
    })?;
    if args.stage.json {
        print_result(json!({"judged": judged, "output": output}));
    } else {
        judged.iter().for_each(|judged| print_result(judged.table()));
    }
    Ok(())
}

/// `glan evaluate --contamination`.
fn contamination(args: &EvaluateArgs) -> Result<()> {
    let config = args.stage.load_config()?;
    let (Some(output), Some(tuned)) = (&args.output, &args.model) else {
        return Err(usage("--contamination needs --model and --output"));
    };
    let device = config.device.open()?;
    let found = evaluate::contamination::run_models(args, output, &config, &mut |role| {
        let base = args.against.as_ref().filter(|_| role == Role::Base);
        load_student(base.unwrap_or(tuned), &config, &device)
    })?;
    print_result(if args.stage.json { json!(found).to_string() } else { found.table() });
    Ok(())
}

/// The configuration of a command that works in a run directory.
///
/// **Errors**: usage, when none is named.
pub fn load_config(args: &StageArgs, command: &str) -> Result<Config> {
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
    stage_of(name, || Ok((work()?, ())))
}

/// The same for a stage with a result.
pub fn stage_of<T>(name: &str, work: impl FnOnce() -> Result<(String, T)>) -> Result<T> {
    interrupt::check()?;
    let begun = Instant::now();
    let (summary, result) = work()?;
    tracing::info!("{name}: {summary} ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(result)
}

/// Stage 1, and what came of it in words.
pub fn generate_stage(config: &Config, run_dir: &RunDir, device: &Device, extra: Extra) -> Result<String> {
    // The stage owns the teacher once it is loaded, so its memory is free again when the stage returns.
    generate::run(config, run_dir, extra, &mut |role| load_teacher(role, config, device))?;
    Ok(pairs(run_dir))
}

/// How many pairs a run has.
pub fn pairs(run_dir: &RunDir) -> String {
    format!("{} question-answer pairs", lines(&run_dir.stage_file("generate", "answers.jsonl")))
}

fn evaluate_stage(config: &Config, run_dir: &RunDir, device: &Device) -> Result<Verdict> {
    let tuned = run_dir.stage_file("train", "student");
    evaluate::run(config, run_dir, &mut |role| match role {
        Role::Base => load_student(&config.student.model, config, device),
        Role::Tuned => load_student(&tuned.to_string_lossy(), config, device),
        Role::Judge => load_judge(config, device),
    })
}

fn load_student(model: &str, config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    engine::load(model, &config.engine, device, config.student.dtype, config.student.max_model_len)
}

fn load_judge(config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    let judge = &config.evaluate.judge;
    engine::load(&judge.model, &config.engine, device, judge.dtype, judge.max_model_len)
}

/// Loads the models of curation when it comes to them; the device is opened no sooner.
struct CurateModels<'a>(&'a Config);

impl curate::Models for CurateModels<'_> {
    fn language_model(&mut self, role: curate::Role) -> Result<Box<dyn LanguageModel>> {
        let Self(config) = *self;
        let model = match role {
            curate::Role::Ifd => &config.curate.ifd_model,
            curate::Role::Judge => &config.curate.judge_model,
        };
        engine::load(model, &config.engine, &config.device.open()?, DtypeChoice::default(), 0)
    }

    fn encoder(&mut self) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(BertEncoder::load(&self.0.curate.encoder_model)?))
    }
}

fn print_comparison(config: &Config, run_dir: &RunDir) -> Result<()> {
    print_result(evaluate::table::comparison(&read_comparison(run_dir)?, config.evaluate.base_fewshot));
    let evaluate = run_dir.stage("evaluate");
    let judged = records::read_json::<evaluate::judge::Judged>(&evaluate.join("judge/glan_test/judged.json"));
    let contamination = records::read_json::<Contamination>(&evaluate.join("contamination.json"));
    let judged = judged.ok().filter(|_| !config.evaluate.judge.model.is_empty()).map(|judged| judged.table());
    let contamination = contamination.ok().map(|contamination| contamination.table());
    for table in judged.into_iter().chain(contamination).filter(|table| !table.is_empty()) {
        print_result(format!("\n{table}"));
    }
    Ok(())
}

fn read_comparison(run_dir: &RunDir) -> Result<Comparison> {
    records::read_json(&run_dir.stage_file("evaluate", "comparison.json"))
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
pub fn lines(path: &Path) -> usize {
    File::open(path).map_or(0, |file| BufReader::new(file).split(b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::GenerateArgs, commands::generate::main as generate, error::exit_code};

    fn run_args(config: Option<&Path>, run_dir: &Path) -> RunArgs {
        RunArgs { stage: args(config, run_dir), fail_on_regression: false }
    }

    fn args(config: Option<&Path>, run_dir: &Path) -> StageArgs {
        let config = config.map(Path::to_owned);
        StageArgs { config, run_dir: Some(run_dir.to_owned()), set: Vec::new(), json: false }
    }

    #[test]
    fn a_run_without_a_configuration_is_a_usage_error_that_leaves_nothing_behind() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let run_dir = folder.path().join("run");
        let commands: [&dyn Fn(StageArgs) -> Result<()>; 3] = [
            &|stage| run(&RunArgs { stage, fail_on_regression: false }),
            &|stage| {
                generate(&GenerateArgs {
                    run: stage,
                    weak: None,
                    stage: None,
                    shard: None,
                    only: None,
                    pilot: false,
                    merge: false,
                    export_batch: None,
                    import_batch: None,
                })
            },
            &|stage| report(&stage),
        ];
        for command in commands {
            let error = command(args(None, &run_dir)).expect_err("no configuration is named");
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
            let error =
                run(&run_args(Some(&config), &folder.path().join("run"))).expect_err("the configuration is wrong");
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
            judge: None,
            against: None,
            contamination: false,
            tasks: vec!["primer".into()],
            data: None,
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
