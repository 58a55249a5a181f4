//! `glan taxonomy`: looks at, reviews and extends the file that everything is made from.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    config::{self, Balance},
    device::{DeviceKind, DtypeChoice},
    engine,
    error::usage,
    generate::{Ballot, Skew, Taxonomy, Voter},
    records::write_atomic,
    telemetry::print_result,
};

/// Arguments of `glan taxonomy`.
#[derive(Debug, Clone, Args)]
pub struct TaxonomyArgs {
    #[command(subcommand)]
    command: TaxonomyCommand,
    /// Machine-readable result on stdout.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum TaxonomyCommand {
    /// What it leans towards, by field, region, religion and language, before anything is generated.
    Report(ReportArgs),
    /// Votes of people or models on every node: the majority keeps or removes it, and their agreement is told.
    Review(ReviewArgs),
    /// Adds the branches of another taxonomy, such as those of a company or a course.
    Extend(ExtendArgs),
}

#[derive(Debug, Clone, Args)]
struct ReportArgs {
    /// The taxonomy's TOML file.
    #[arg(long, value_name = "FILE", default_value = "configs/taxonomy.toml")]
    taxonomy: PathBuf,
    /// Nodes of which level get even shares: discipline, subfield or field (`generate.balance`).
    #[arg(long, value_name = "LEVEL", value_parser = balance, default_value = "discipline")]
    balance: Balance,
    /// Word lists, written as `configs/lexicons/taxonomy.toml`; the built-in ones by default.
    #[arg(long, value_name = "FILE")]
    lists: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
struct ReviewArgs {
    /// The taxonomy's TOML file.
    #[arg(long, value_name = "FILE", default_value = "configs/taxonomy.toml")]
    taxonomy: PathBuf,
    /// Write an empty ballot for one person to fill in, and nothing else.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["votes", "model", "output"])]
    ballot: Option<PathBuf>,
    /// A filled-in ballot. May be repeated.
    #[arg(long, value_name = "FILE")]
    votes: Vec<PathBuf>,
    /// A model that votes: a directory, a GGUF file, or `org/name` in the Hugging Face cache. May be repeated.
    #[arg(long, value_name = "DIR")]
    model: Vec<String>,
    /// Folder of prompts with a `taxonomy_review.jinja`; the built-in one by default.
    #[arg(long, value_name = "DIR")]
    prompts: Option<PathBuf>,
    /// Type of the models' weights.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeChoice,
    /// Where the models compute.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceKind,
    /// Override an `engine` key for the models, such as `engine.max_num_seqs=8`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where the reviewed taxonomy goes, to be edited and set as `generate.taxonomy`.
    #[arg(long, value_name = "FILE", required_unless_present = "ballot")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
struct ExtendArgs {
    /// The taxonomy's TOML file.
    #[arg(long, value_name = "FILE", default_value = "configs/taxonomy.toml")]
    taxonomy: PathBuf,
    /// A file of the same form whose branches are added; where both have a node, its weight, quota and cap are this one's. May be
    /// repeated.
    #[arg(long, value_name = "FILE", required = true)]
    with: Vec<PathBuf>,
    /// Where the sum goes.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "discipline" => Ok(Balance::Discipline),
        "subfield" => Ok(Balance::Subfield),
        "field" => Ok(Balance::Field),
        _ => Err("expected discipline, subfield or field".to_owned()),
    }
}

/// Runs the command.
pub fn main(args: &TaxonomyArgs) -> Result<()> {
    match &args.command {
        TaxonomyCommand::Report(report) => {
            let skew = Skew::of(&Taxonomy::load(&report.taxonomy)?, report.balance, report.lists.as_deref())?;
            print_result(if args.json { json!(skew).to_string() } else { skew.table() });
            Ok(())
        }
        TaxonomyCommand::Review(args_of) => review(args_of, args.json),
        TaxonomyCommand::Extend(extend) => {
            let taxonomy = Taxonomy::load_extended(&extend.taxonomy, &extend.with)?;
            let files: Vec<String> = extend.with.iter().map(|path| path.display().to_string()).collect();
            let head = format!("{} with the branches of {}.", extend.taxonomy.display(), files.join(", "));
            write_atomic(&extend.output, taxonomy.to_toml(&head).as_bytes())?;
            let leaves = taxonomy.disciplines(Balance::Discipline)?.len();
            print_result(if args.json {
                json!({"disciplines": leaves, "output": extend.output}).to_string()
            } else {
                format!("{leaves} disciplines in `{}`", extend.output.display())
            });
            Ok(())
        }
    }
}

fn review(args: &ReviewArgs, json: bool) -> Result<()> {
    let taxonomy = Taxonomy::load(&args.taxonomy)?;
    let ballot = Ballot::new(&taxonomy);
    if let Some(path) = &args.ballot {
        if path.exists() {
            return Err(usage(format!("`{}` exists and may hold votes; name another file", path.display())));
        }
        write_atomic(path, ballot.to_text().as_bytes())?;
        print_result(if json {
            json!({"ballot": path}).to_string()
        } else {
            format!("an empty ballot in `{}`", path.display())
        });
        return Ok(());
    }
    let Some(output) = &args.output else { return Err(usage("--output is needed")) };
    let mut voters: Vec<Voter> = args.votes.iter().map(|path| ballot.read(path)).collect::<Result<_>>()?;
    if let Some(twice) = (0..args.model.len()).find(|&index| args.model[..index].contains(&args.model[index])) {
        return Err(usage(format!("--model {} is given twice, and would vote the same twice", args.model[twice])));
    }
    if !args.model.is_empty() {
        let engine = config::load(None, &args.set)?.engine;
        let device = args.device.open()?;
        for name in &args.model {
            let mut model = engine::load(name, &engine, &device, args.dtype, 0)?;
            voters.push(ballot.ask(model.as_mut(), args.prompts.as_deref().unwrap_or(Path::new("")))?);
        }
    }
    let (kept, review) = ballot.decide(&taxonomy, &voters)?;
    write_atomic(output, kept.to_toml(&review.head()).as_bytes())?;
    print_result(if json {
        json!({"review": review, "votes": voters, "output": output}).to_string()
    } else {
        format!("{}; see `{}`", review.sentence(), output.display())
    });
    Ok(())
}
