//! The stage itself: which models answer which plans, what is finished already, and the comparison at the end.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    EvaluateArgs, Role, RoleLoader, Verdict,
    compare::{self, Evaluations},
    contamination,
    judge::{self, Judging, Side},
    plan::{self, Plan, PlanOptions},
    prompt::PromptStyle,
    responses,
    results::{self, Finished},
    sandbox::Sandbox,
    weak,
};
use crate::{
    config::{CodeConfig, Config},
    error::{Failure, usage},
    interrupt,
    language_model::LanguageModel,
    model_dir, records,
    run_dir::RunDir,
    seed,
};

/// The task that the base model also answers with examples.
const FEWSHOT_TASK: &str = "primer";

/// Runs the stage on a run directory.
///
/// **Errors**: missing input, without a student; usage, for unknown tasks or when no task can be evaluated.
pub fn run(config: &Config, run_dir: &RunDir, load: &mut RoleLoader) -> Result<Verdict> {
    let student = run_dir.stage_file("train", "student");
    if !student.join("config.json").is_file() {
        return Err(Failure::MissingInput(format!(
            "there is no student at `{}`; `glan train -c FILE` makes it",
            student.display()
        ))
        .into());
    }
    let plans = Plans::new(config)?;
    for skipped in &plans.base.skipped {
        tracing::warn!("task `{}` is skipped: {}", skipped.task, skipped.reason);
    }
    let folder = |name: &str| run_dir.stage_file("evaluate", name);
    let base_key = model_key(&config.student.model, config)?;
    let tuned_key = model_key(&student.to_string_lossy(), config)?;
    let base_pass = Pass { plan: &plans.base, folder: folder("base"), model_key: &base_key };
    let fewshot_pass = plans.base_fewshot.as_ref();
    let fewshot_pass = fewshot_pass.map(|plan| Pass { plan, folder: folder("base_fewshot"), model_key: &base_key });
    let mut beside = Beside::new(config, run_dir, &base_key, &tuned_key)?;
    let tuned_pass = Pass { plan: &plans.tuned, folder: folder("tuned"), model_key: &tuned_key };

    // One model at a time in memory: the base goes before the tuned comes.
    let mut loaded = None;
    let base = base_pass.finish(&mut loaded, &mut || load(Role::Base))?;
    let base_fewshot = fewshot_pass.map(|pass| pass.finish(&mut loaded, &mut || load(Role::Base))).transpose()?;
    beside.ask(Side::Base, false, &mut loaded, &mut || load(Role::Base))?;
    drop(loaded);
    let mut loaded = None;
    let tuned = tuned_pass.finish(&mut loaded, &mut || load(Role::Tuned))?;
    let chat = config.evaluate.apply_chat_template;
    beside.ask(Side::Tuned, chat, &mut loaded, &mut || load(Role::Tuned))?;
    drop(loaded);

    let tasks: Vec<_> = plans.base.tasks.iter().map(|planned| planned.task).collect();
    let evaluations = Evaluations { base: &base, base_fewshot: base_fewshot.as_ref(), tuned: &tuned };
    contamination::finish(beside.contamination, config, run_dir, &tasks, &evaluations)?;
    let bootstrap_iters = config.evaluate.bootstrap_iters;
    let comparison = compare::compare(&tasks, &plans.base.skipped, &evaluations, config.seed, bootstrap_iters)?;
    records::write_json(&run_dir.stage_file("evaluate", "comparison.json"), &comparison)?;
    if let Some(judging) = beside.judging {
        judging.judge(load(Role::Judge)?.as_mut())?;
    }
    weak::write(config, run_dir, compare::headline(&tasks)?, &base, &tuned)?;
    Ok(comparison.verdict)
}

/// What the two models of a run are asked beside the tasks.
struct Beside {
    /// Questions whose answers are judged.
    judging: Option<Judging>,
    /// Texts whose losses are compared.
    contamination: contamination::Check,
}

impl Beside {
    fn new(config: &Config, run_dir: &RunDir, base_key: &str, tuned_key: &str) -> Result<Self> {
        Ok(Self {
            judging: judge::of_run(config, run_dir, base_key, tuned_key)?,
            contamination: contamination::of_run(config, run_dir, base_key, tuned_key)?,
        })
    }

    /// Asks the model that is loaded, or loads it where there is something to ask.
    fn ask(
        &mut self,
        side: Side,
        chat: bool,
        loaded: &mut Option<Box<dyn LanguageModel>>,
        load: &mut dyn FnMut() -> Result<Box<dyn LanguageModel>>,
    ) -> Result<()> {
        if let Some(judging) = &mut self.judging {
            judging.answer(side, chat, loaded_or(loaded, load)?)?;
        }
        if self.contamination.is_open {
            self.contamination.measure(side, loaded_or(loaded, load)?)?;
        }
        Ok(())
    }
}

/// Finds what is wrong with `[evaluate]` before the stages ahead of it have taken their time.
///
/// **Errors**: usage, as [`run`] would give them.
pub fn check(config: &Config) -> Result<()> {
    judge::check(config)?;
    Plans::new(config).map(drop)
}

/// What each model of a run is asked.
struct Plans {
    base: Plan,
    base_fewshot: Option<Plan>,
    tuned: Plan,
}

impl Plans {
    fn new(config: &Config) -> Result<Self> {
        let evaluate = &config.evaluate;
        let num_fewshot = plan::num_fewshot(evaluate.num_fewshot)?;
        let options = |num_fewshot, style| PlanOptions {
            data_dir: evaluate.data_dir.clone(),
            limit: evaluate.limit,
            num_fewshot,
            style,
        };
        let style = |chat| PromptStyle::of(chat, evaluate.fewshot_as_multiturn, &evaluate.system_instruction);
        let mut base = Plan::new(&evaluate.tasks, options(num_fewshot, style(false)))?;
        let sandbox = if base.needs_sandbox() {
            let launcher = std::env::current_exe().context("cannot find the path of this program")?;
            Some(open_sandbox(&evaluate.code, &launcher))
        } else {
            None
        };
        if let Some(sandbox) = &sandbox {
            base.take_sandbox(sandbox);
        }
        if base.tasks.is_empty() {
            let names = evaluate.tasks.join(", ");
            return Err(usage(format!("none of the tasks of evaluate.tasks can be evaluated: [{names}]")));
        }
        let mut tuned = Plan::new(&evaluate.tasks, options(num_fewshot, style(evaluate.apply_chat_template)))?;
        if let Some(sandbox) = &sandbox {
            tuned.take_sandbox(sandbox);
        }
        for plan in [&mut base, &mut tuned] {
            plan.think_end_token.clone_from(&evaluate.think_end_token);
        }
        let base_fewshot = if evaluate.base_fewshot > 0 && base.has(FEWSHOT_TASK) {
            let options = options(Some(evaluate.base_fewshot), style(false));
            let mut plan = Plan::new(&[FEWSHOT_TASK.to_owned()], options)?;
            plan.think_end_token.clone_from(&evaluate.think_end_token);
            Some(plan)
        } else {
            None
        };
        Ok(Self { base, base_fewshot, tuned })
    }
}

/// One model's answers to one plan.
struct Pass<'a> {
    plan: &'a Plan,
    folder: PathBuf,
    model_key: &'a str,
}

impl Pass<'_> {
    /// What is on disk, else what the model answers now. The model is loaded only for that.
    fn finish(
        &self,
        loaded: &mut Option<Box<dyn LanguageModel>>,
        load: &mut dyn FnMut() -> Result<Box<dyn LanguageModel>>,
    ) -> Result<Finished> {
        let hash = results::evaluation_hash(self.plan, self.model_key);
        if let Some(finished) = Finished::find(&self.folder, &hash) {
            tracing::debug!("`{}` is finished", finished.path().display());
            return Ok(finished);
        }
        interrupt::check()?;
        evaluate(self.plan, &self.folder, &hash, self.model_key, loaded_or(loaded, load)?, true)
    }
}

/// The model that is in memory, else the one that is loaded now.
fn loaded_or<'a>(
    loaded: &'a mut Option<Box<dyn LanguageModel>>,
    load: &mut dyn FnMut() -> Result<Box<dyn LanguageModel>>,
) -> Result<&'a mut dyn LanguageModel> {
    Ok(match loaded {
        Some(model) => model.as_mut(),
        None => loaded.insert(load()?).as_mut(),
    })
}

fn evaluate(
    plan: &Plan,
    folder: &Path,
    evaluation_hash: &str,
    model_key: &str,
    model: &mut dyn LanguageModel,
    replace: bool,
) -> Result<Finished> {
    let begun = Instant::now();
    let answers = responses::answer(plan, folder, model_key, model)?;
    if let (failed @ 1.., Some(first)) = answers.failures() {
        tracing::warn!("{failed} requests could not be served and count as wrong; the first: {first}");
    }
    let seconds = begun.elapsed().as_secs_f64();
    results::write(plan, &answers, folder, evaluation_hash, model, seconds, replace)
}

fn open_sandbox(config: &CodeConfig, launcher: &Path) -> Result<Arc<Sandbox>> {
    Sandbox::open(config, launcher).map(Arc::new)
}

/// What `glan evaluate --model` asks; to be called before the model is loaded. `launcher` is the `glan` executable,
/// which sandboxes programs.
///
/// **Errors**: usage, for a task that does not exist, whose data is not there, or whose programs cannot be run.
pub fn plan_model(args: &EvaluateArgs, config: &CodeConfig, launcher: &Path) -> Result<Plan> {
    let options = PlanOptions {
        data_dir: args.data.clone().unwrap_or_default(),
        limit: args.limit.unwrap_or(0),
        num_fewshot: args.num_fewshot,
        style: PromptStyle::of(args.apply_chat_template, args.fewshot_as_multiturn, &args.system_instruction),
    };
    if args.tasks.is_empty() {
        return Err(usage("--model needs --tasks, such as --tasks gsm8k,mmlu"));
    }
    let mut plan = Plan::new(&args.tasks, options)?;
    plan.think_end_token.clone_from(&args.think_end_token);
    if plan.needs_sandbox() {
        plan.take_sandbox(&open_sandbox(config, launcher));
    }
    plan.require_all()?;
    Ok(plan)
}

/// Evaluates one model and returns its results file; files go to `output/MODEL/`.
///
/// A finished evaluation of the same model and items is kept, an interrupted one goes on.
pub fn run_model(plan: &Plan, output: &Path, model: &mut dyn LanguageModel) -> Result<Value> {
    let folder = output.join(results::sanitized(&model.identity().name));
    let model_key = key_of(model);
    let hash = results::evaluation_hash(plan, &model_key);
    let finished = match Finished::find(&folder, &hash) {
        Some(finished) => finished,
        None => evaluate(plan, &folder, &hash, &model_key, model, false)?,
    };
    tracing::info!("results in `{}`", finished.path().display());
    Ok(finished.results)
}

/// Identifies a model that is loaded, with the settings that change what it says.
pub fn key_of(model: &dyn LanguageModel) -> String {
    let template = model.chat_template().map_or("", |template| template.source());
    let identity = model.identity();
    seed::record_id(&[&identity.hash, &identity.dtype, template, &model.max_model_len().to_string()])
}

/// Identifies a model by its files, without loading it, and by the settings that change what it says.
pub fn model_key(model: &str, config: &Config) -> Result<String> {
    let settings = format!("{:?} {:?} {}", config.device, config.student.dtype, config.student.max_model_len);
    // A model that cannot be found is its loader's error to explain.
    let files = match model_dir::resolve(model) {
        Ok(directory) => hash_files(&directory)?,
        Err(_) => model.to_owned(),
    };
    Ok(seed::record_id(&[&files, &settings]))
}

/// A hash of everything in a model directory that changes its answers.
fn hash_files(directory: &Path) -> Result<String> {
    const NAMES: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ];
    if directory.is_file() {
        // A GGUF file holds all of it itself.
        return model_dir::hash_model(directory);
    }
    let cannot_read = |path: &Path| format!("cannot read `{}`", path.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| cannot_read(directory))? {
        let path = entry.with_context(|| cannot_read(directory))?.path();
        let is_weights = path.extension().is_some_and(|extension| extension == "safetensors" || extension == "gguf");
        if is_weights || path.file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known)) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        let file = File::open(&path).with_context(|| cannot_read(&path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hasher.update(name.as_bytes());
        hasher.update(&file.metadata().with_context(|| cannot_read(&path))?.len().to_le_bytes());
        hasher.update_reader(file).with_context(|| cannot_read(&path))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
