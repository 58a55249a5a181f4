//! `glan generate`: the whole stage, a shard, a pilot, a taxonomy, or a file for a batch service.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    pipeline::{generate_stage, lines, load_config, pairs},
    remote::RemoteModel,
};
use crate::{
    cli::GenerateArgs,
    config::Config,
    device::Device,
    engine,
    error::usage,
    generate::{self, Extra, Role},
    language_model::LanguageModel,
    records,
    run_dir::RunDir,
    telemetry::print_result,
};

/// `glan generate`.
pub fn main(args: &GenerateArgs) -> Result<()> {
    let GenerateArgs { run: args, weak, stage, shard, only, pilot, merge, export_batch, import_batch } = args;
    let config = load_config(args, "generate")?;
    let device = config.device.open()?;
    if let Some(shard) = *shard {
        let run_dir = RunDir::open_shared(&args.run_dir_path(), &config)?;
        generate::run_shard(&config, &run_dir, shard, &mut |role| load_teacher(role, &config, &device))?;
        print_result(if args.json {
            json!({"shard": shard.to_string(), "run_dir": run_dir.root()}).to_string()
        } else {
            format!("shard {shard} is finished; once all are: glan generate --merge")
        });
        return Ok(());
    }
    let run_dir = RunDir::open(&args.run_dir_path(), &config)?;
    if export_batch.is_some() || import_batch.is_some() {
        return batch_file(&config, &run_dir, (export_batch.as_deref(), import_batch.as_deref()), args.json);
    }
    if stage.is_some() {
        return build_taxonomy(&config, &run_dir, &device, args.json);
    }
    if *pilot {
        let estimate = generate::estimate(&config, &run_dir, &mut |role| load_teacher(role, &config, &device))?;
        print_result(if args.json { json!(estimate).to_string() } else { estimate.sentence() });
        return Ok(());
    }
    let summary = if *merge {
        generate::merge(&config, &run_dir)?;
        pairs(&run_dir)
    } else {
        generate_stage(&config, &run_dir, &device, Extra { weak: weak.as_deref(), only: only.as_deref() })?
    };
    if args.json {
        let answers = lines(&run_dir.stage_file("generate", "answers.jsonl"));
        let stats: Option<Value> = records::read_json(&run_dir.stage_file("generate", "stats.json")).ok();
        print_result(json!({"answers": answers, "stats": stats, "run_dir": run_dir.root()}));
    } else {
        print_result(format!("{summary} in `{}`", run_dir.stage("generate").display()));
    }
    Ok(())
}

/// `glan generate --export-batch` and `--import-batch`.
fn batch_file(
    config: &Config,
    run_dir: &RunDir,
    (export, import): (Option<&Path>, Option<&Path>),
    json: bool,
) -> Result<()> {
    let (value, sentence) = if let Some(file) = export {
        let exported = generate::export_batch(config, run_dir, file)?;
        let sentence = match exported.requests {
            0 => "nothing is pending: the run is finished".to_owned(),
            requests => format!("{requests} requests in `{}`; read the answers with --import-batch", file.display()),
        };
        (json!(exported), sentence)
    } else {
        let Some(file) = import else { return Err(usage("--import-batch needs a file")) };
        let imported = generate::import_batch(config, run_dir, file)?;
        let rest = match &imported.pending {
            Some((step, left)) => format!("{left} requests of `{step}` are pending, --export-batch writes them"),
            None => "the run is finished".to_owned(),
        };
        (json!(imported), format!("{} answers of `{}` were used; {rest}", imported.used, file.display()))
    };
    print_result(if json { value.to_string() } else { sentence });
    Ok(())
}

/// `glan generate --stage taxonomy`.
fn build_taxonomy(config: &Config, run_dir: &RunDir, device: &Device, json: bool) -> Result<()> {
    let (taxonomy, is_new) = generate::build_taxonomy(config, run_dir, &mut |role| load_teacher(role, config, device))?;
    let path = run_dir.stage_file("generate", "taxonomy.toml");
    let disciplines = taxonomy.disciplines(config.generate.balance)?.len();
    let (fields, what) = (taxonomy.fields.len(), if is_new { "written to" } else { "built before; as it is in" });
    print_result(if json {
        json!({"fields": fields, "disciplines": disciplines, "taxonomy": path, "written": is_new}).to_string()
    } else {
        format!("{disciplines} disciplines in {fields} fields, {what} `{}`", path.display())
    });
    Ok(())
}

/// A model of stage 1: one on this machine, or the one at its endpoint.
///
/// **Errors**: usage, where none is named; those of loading it.
pub fn load_teacher(role: Role, config: &Config, device: &Device) -> Result<Box<dyn LanguageModel>> {
    let model = match role {
        Role::Teacher => &config.teacher,
        Role::Answerer => &config.answerer,
        Role::Judge => &config.judge,
    };
    if model.model.is_empty() {
        return Err(usage("no teacher is named: set `teacher.model` to a directory or `org/name`"));
    }
    if !model.endpoint.is_empty() {
        return Ok(Box::new(RemoteModel::new(model, config.engine.max_num_seqs)?));
    }
    engine::load(&model.model, &config.engine, device, model.dtype, model.max_model_len)
}
