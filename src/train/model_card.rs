//! The `README.md` of a student: what it came from, how it was made, how good it is.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Job, output::TrainResults, trainer::Prepared};
use crate::config::{TrainConfig, TrainInit, TrainMethod};

/// A model card as Hugging Face's hub reads it.
pub fn model_card(job: &Job, prepared: &Prepared, results: &TrainResults) -> Result<String> {
    let settings = &job.config.train;
    let base = match settings.init {
        TrainInit::Checkpoint => format!("base_model: {}\n", job.model.model),
        TrainInit::Random => String::new(),
    };
    let mut out = format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n{base}tags: [glan, synthetic]\n---\n\n\
         # A student trained by glan {}\n\n\
         {} on {} rows, {:.2} epochs, {} steps of {} conversations, peak learning rate {:e}, seed {}.\n",
        env!("CARGO_PKG_VERSION"),
        method_in_words(settings),
        results.num_rows,
        results.epoch,
        results.global_step,
        settings.train_batch_size,
        settings.learning_rate,
        job.config.seed,
    );
    data(&mut out, job, prepared, results)?;
    scores(&mut out, results)?;
    let table = toml::Table::from_iter([("train".to_owned(), toml::Value::try_from(settings)?)]);
    write!(out, "\n## Configuration\n\n```toml\nseed = {}\n\n{}```\n", job.config.seed, toml::to_string(&table)?)?;
    Ok(out)
}

fn data(out: &mut String, job: &Job, prepared: &Prepared, results: &TrainResults) -> Result<()> {
    write!(out, "\n## Data\n\n| | file | rows | BLAKE3 |\n|---|---|---|---|\n")?;
    let valid = job.valid.iter().map(|path| ("validation", path, prepared.valid.as_ref().map_or(0, |rows| rows.len())));
    let files = std::iter::once(("training", &job.data, results.num_rows)).chain(valid);
    for ((what, path, rows), hash) in files.zip(&prepared.data_hashes) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        writeln!(out, "| {what} | `{name}` | {rows} | `{}` |", &hash[..16])?;
    }
    write!(
        out,
        "\n{} training rows were cut at {} tokens, {} had nothing to train on and were left out.\n",
        results.num_truncated, prepared.max_length, results.num_without_target
    )?;
    if job.is_stage {
        write!(
            out,
            "\nThe rows were made by the stages before: questions and answers by `{}`, from a taxonomy of human knowledge \
             (GLAN, arXiv 2402.13064), filtered, judged and freed of benchmark items. A row's `id` and `parent` lead to \
             the subject and discipline that it came from.\n",
            job.config.teacher.model
        )?;
    }
    Ok(())
}

fn scores(out: &mut String, results: &TrainResults) -> Result<()> {
    write!(
        out,
        "\n## Scores\n\n| | loss per token |\n|---|---|\n| training, mean of all steps | {:.4} |\n",
        results.train_loss
    )?;
    if let Some(loss) = results.eval_loss {
        writeln!(out, "| validation, at the end | {loss:.4} (perplexity {:.2}) |", loss.exp())?;
    }
    if let Some(step) = results.best_step {
        write!(out, "\nThe weights are those of step {step}, which had the lowest validation loss.\n")?;
    }
    Ok(())
}

fn method_in_words(settings: &TrainConfig) -> String {
    match settings.method {
        TrainMethod::Full => "Full fine-tuning".to_owned(),
        TrainMethod::Lora | TrainMethod::QLora => format!(
            "{}{}LoRA of rank {} (alpha {}, {}), merged, trained",
            if settings.use_dora { "DoRA, a form of " } else { "" },
            if settings.method == TrainMethod::QLora { "Q" } else { "" },
            settings.lora_r,
            settings.lora_alpha,
            settings.lora_target_modules.join(", "),
        ),
    }
}
