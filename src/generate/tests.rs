//! The whole stage with a scripted teacher: files, lineage, order, kills, bad replies.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Result, anyhow};
use serde_json::Value;

use super::{
    Extra, Role, Stats,
    ledger::RejectedRow,
    scripted::{Asked, Reply, Scripted, asked, good_reply},
};
use crate::{
    config::Config,
    error::{Failure, exit_code},
    language_model::{LanguageModel, Request},
    records::{read_json, read_jsonl},
    run_dir::RunDir,
};

/// A run directory with a taxonomy of two disciplines, and the configuration that goes with it.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub config: Config,
    /// What `--weak` names.
    weak: Option<PathBuf>,
    /// What `--only` names.
    pub only: Option<&'static str>,
}

impl Bench {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let taxonomy = folder.path().join("taxonomy.toml");
        std::fs::write(
            &taxonomy,
            "[[fields]]\nname = \"Science\"\n[[fields.subfields]]\nname = \"Nature\"\n\
             disciplines = [\"Physics\", \"Biology\"]\n",
        )?;
        let mut config = Config { seed: 11, ..Config::default() };
        config.generate.taxonomy = taxonomy;
        config.generate.samples_per_discipline = 2;
        config.generate.num_questions = 12;
        config.generate.min_class_sessions = 1;
        config.generate.min_yield = 0.0;
        Ok(Self { folder, config, weak: None, only: None })
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.run_dir().join("generate").join(name)
    }

    /// Runs the stage; returns how often the teacher was loaded.
    pub fn run(&self, teacher: impl FnMut() -> Scripted) -> (usize, Result<()>) {
        let run_dir = match RunDir::open(&self.run_dir(), &self.config) {
            Ok(run_dir) => run_dir,
            Err(error) => return (0, Err(error)),
        };
        let mut teacher = teacher;
        let mut loaded = 0;
        let extra = Extra { weak: self.weak.as_deref(), only: self.only };
        let result = super::run(&self.config, &run_dir, extra, &mut |_| {
            loaded += 1;
            Ok(Box::new(teacher()) as Box<dyn LanguageModel>)
        });
        (loaded, result)
    }

    /// Every file of the stage; those of shards are left out.
    pub fn files(&self) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(self.run_dir().join("generate"))? {
            let entry = entry?;
            if entry.path().is_dir() {
                continue;
            }
            files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path())?);
        }
        Ok(files)
    }
}

pub fn good(max_num_seqs: usize) -> Scripted {
    Scripted::new(Rc::new(|request| Reply::Text(good_reply(request))), max_num_seqs)
}

fn scripted(script: impl Fn(&Request) -> Reply + 'static) -> Scripted {
    Scripted::new(Rc::new(script), 4)
}

/// Spoils a quarter of all replies, with each kind of damage.
pub fn spoilt(request: &Request) -> Reply {
    damaged(request, 16)
}

/// Spoils half of all replies.
fn half_broken(request: &Request) -> Reply {
    damaged(request, 8)
}

/// Spoils 4 of `out_of` replies, as their seeds say.
fn damaged(request: &Request, out_of: u64) -> Reply {
    let good = good_reply(request);
    match (request.sampling.seed >> 8) % out_of {
        0 => Reply::Text(good.chars().take(good.len() / 2).collect::<String>().replace(['{', '?'], "")),
        1 => Reply::Cut(good),
        2 => Reply::Failed("the prompt is too long: 9 tokens of at most 4 (max_model_len)".into()),
        3 => Reply::Text("  \n".into()),
        _ => Reply::Text(good),
    }
}

pub fn rows(path: &Path) -> Result<Vec<Value>> {
    read_jsonl(path)
}

pub fn ids(path: &Path) -> Result<BTreeSet<String>> {
    Ok(rows(path)?.iter().map(|row| row["id"].as_str().expect("a row has an id").to_owned()).collect())
}

#[test]
fn the_whole_stage_traces_every_answer_to_its_discipline() -> Result<()> {
    for two_step in [true, false] {
        let mut bench = Bench::new()?;
        bench.config.generate.two_step = two_step;
        if !two_step {
            bench.config.generate.subjects_per_sample = 1;
        }
        let (loaded, result) = bench.run(|| good(4));
        result?;
        assert_eq!(loaded, 1);

        let answers = rows(&bench.file("answers.jsonl"))?;
        assert_eq!(answers.len(), 12);
        let keys: Vec<_> = answers[0].as_object().expect("an object").keys().map(String::as_str).collect();
        let expected =
            ["id", "parent", "discipline", "subject", "level", "class_sessions", "key_concepts", "question", "answer"];
        assert_eq!(keys, expected);
        let taxonomy: Value = read_json(&bench.file("taxonomy.json"))?;
        let mut chain: BTreeMap<String, Value> = BTreeMap::new();
        for file in ["subjects.jsonl", "syllabi.jsonl", "questions.jsonl"] {
            for row in rows(&bench.file(file))? {
                chain.insert(row["id"].as_str().expect("a row has an id").to_owned(), row);
            }
        }
        for answer in &answers {
            let mut parent = answer["parent"].as_str().expect("a parent");
            for _ in 0..3 {
                let row = &chain[parent];
                assert_eq!(row["discipline"], answer["discipline"]);
                parent = row["parent"].as_str().expect("a parent");
            }
            assert!(taxonomy.to_string().contains(parent), "the last parent is a discipline");
            let question = answer["question"].as_str().expect("a question");
            assert!(question.starts_with("What is"), "the label is taken off: {question}");
            assert_eq!(answer["answer"], format!("It is {question}."));
        }
        assert_eq!(bench.file("subject_drafts.jsonl").exists(), two_step);

        let stats: Stats = read_json(&bench.file("stats.json"))?;
        let steps: Vec<_> = stats.steps.iter().map(|step| (step.step.as_str(), step.kept)).collect();
        let subjects = stats.counts.subjects;
        let expected: &[_] = if two_step {
            &[
                ("subject_drafts", 4),
                ("subjects", 4),
                ("syllabus_drafts", subjects),
                ("syllabi", subjects),
                ("questions", 12),
                ("answers", 12),
            ]
        } else {
            &[("subjects", 4), ("syllabi", subjects), ("questions", 12), ("answers", 12)]
        };
        assert_eq!(steps, expected);
        assert_eq!(stats.counts.key_concepts, 5 * stats.counts.syllabi);

        let before = bench.files()?;
        let (loaded, result) = bench.run(|| good(4));
        result?;
        assert_eq!((loaded, before), (0, bench.files()?), "nothing is left to do");
    }
    Ok(())
}

#[test]
fn files_are_the_same_bytes_at_any_batch_size_and_order() -> Result<()> {
    let bench = Bench::new()?;
    bench.run(|| Scripted::new(Rc::new(spoilt), 1)).1?;
    let expected = bench.files()?;
    assert!(!expected["rejected.jsonl"].is_empty());
    for max_num_seqs in [2, 5, 64] {
        let again = Bench::new()?;
        again.run(|| Scripted::new(Rc::new(spoilt), max_num_seqs)).1?;
        assert_eq!(again.files()?, expected, "{max_num_seqs} at once");
    }
    Ok(())
}

#[test]
fn a_kill_after_any_result_and_with_any_torn_line_changes_no_byte() -> Result<()> {
    let whole = Bench::new()?;
    whole.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
    let expected = whole.files()?;
    let stats: Stats = read_json(&whole.file("stats.json"))?;
    let results: usize = stats.steps.iter().map(|step| step.requested).sum();
    for lives in 0..results {
        let bench = Bench::new()?;
        let (_, result) = bench.run(|| Scripted::new(Rc::new(spoilt), 3).killed_after(lives));
        assert_eq!(result.expect_err("killed").to_string(), "killed");
        // What a kill in the midst of a write leaves: part of a line in one of the files that were being written, or
        // a whole line of usage whose record is missing.
        let last = stats.steps.iter().map(|step| step.step.as_str()).rfind(|step| {
            std::fs::read_to_string(bench.file("usage.jsonl")).is_ok_and(|usage| usage.contains(&format!("\"{step}\"")))
        });
        let usage = format!(
            "{{\"id\":\"0123456789abcdef\",\"stage\":\"{}\",\"prompt_tokens\":7,\"completion_tokens\":7}}\n",
            last.unwrap_or("subject_drafts")
        );
        let torn = [("usage.jsonl", usage.as_str()), ("rejected.jsonl", "{\"id\":\"01"), ("usage.jsonl", "{")];
        let (name, text) = torn[lives % torn.len()];
        if bench.file(name).exists() {
            let before = std::fs::read_to_string(bench.file(name))?;
            std::fs::write(bench.file(name), before + text)?;
        }
        if let Some(file) =
            ["answers.jsonl", "questions.jsonl", "syllabi.jsonl"].iter().find(|file| bench.file(file).exists())
        {
            let before = std::fs::read_to_string(bench.file(file))?;
            std::fs::write(bench.file(file), before + "{\"id\":\"0123456789abcdef\",")?;
        }
        bench.run(|| Scripted::new(Rc::new(spoilt), 2)).1?;
        assert_eq!(bench.files()?, expected, "killed after {lives} of {results} results");
    }
    Ok(())
}

#[test]
fn a_teacher_that_is_half_broken_loses_only_its_bad_replies_and_the_table_adds_up() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.config.generate.samples_per_discipline = 12;
    bench.config.generate.num_questions = 100;
    bench.run(|| Scripted::new(Rc::new(half_broken), 8)).1?;
    let stats: Stats = read_json(&bench.file("stats.json"))?;
    let rejected: Vec<RejectedRow> = read_jsonl(&bench.file("rejected.jsonl"))?;
    let mut reasons = BTreeSet::new();
    for step in &stats.steps {
        let file = if step.step == "subjects" { "subjects_raw.jsonl".into() } else { format!("{}.jsonl", step.step) };
        let kept = ids(&bench.file(&file))?;
        let refused: BTreeSet<String> =
            rejected.iter().filter(|row| row.stage == step.step).map(|row| row.id.clone()).collect();
        assert!(kept.is_disjoint(&refused));
        assert_eq!((kept.len(), refused.len()), (step.kept, step.rejected.values().sum()));
        assert_eq!(step.requested, step.kept + step.rejected.values().sum::<usize>());
        assert_eq!(step.pending, 0);
        reasons.extend(step.rejected.keys().cloned());
    }
    assert_eq!(rejected.len(), stats.steps.iter().map(|step| step.requested - step.kept).sum::<usize>());
    for step in &stats.steps[1..] {
        assert!(step.kept > 0 && step.kept < step.requested, "a part of all: {step:?}");
    }
    let expected = ["empty", "malformed_json", "too_long", "truncated"];
    assert_eq!(reasons.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn a_yield_under_the_floor_ends_the_step_early_with_reasons_and_nothing_lost() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.config.generate.num_questions = 80;
    bench.config.generate.min_yield = 0.5;
    let asked_for = Rc::new(Cell::new(0));
    let counter = Rc::clone(&asked_for);
    let script = move |request: &Request| {
        let good = good_reply(request);
        if asked(request) != Asked::Question {
            return Reply::Text(good);
        }
        counter.set(counter.get() + 1);
        if counter.get() % 5 == 0 { Reply::Text(good) } else { Reply::Cut("What is it, and why".into()) }
    };
    let script: Rc<dyn Fn(&Request) -> Reply> = Rc::new(script);
    let (_, result) = bench.run(|| Scripted::new(Rc::clone(&script), 1));
    let error = result.expect_err("a fifth is under the floor of a half");
    let message = error.to_string();
    assert!(message.contains("10 of the first 50 results of `questions`"), "{message}");
    assert!(message.contains("40 truncated (such as: What is it"), "{message}");
    assert_eq!((exit_code(&error), asked_for.get()), (1, 50));
    assert_eq!(rows(&bench.file("questions.jsonl"))?.len(), 10);
    let stats: Stats = read_json(&bench.file("stats.json"))?;
    let questions = stats.steps.last().expect("the failed step has its row");
    assert_eq!((questions.kept, questions.pending), (10, 30));

    let (loaded, again) = bench.run(|| Scripted::new(Rc::clone(&script), 1));
    assert_eq!(again.expect_err("it stays so").to_string(), message);
    assert_eq!((loaded, asked_for.get()), (0, 50), "and is known without the teacher");
    bench.config.generate.min_yield = 0.0;
    bench.run(|| good(4)).1?;
    assert_eq!(rows(&bench.file("questions.jsonl"))?.len(), 40);
    Ok(())
}

#[test]
fn a_removed_line_is_made_again_and_the_rows_behind_it_are_not() -> Result<()> {
    let bench = Bench::new()?;
    bench.run(|| Scripted::new(Rc::new(spoilt), 4)).1?;
    let expected = bench.files()?;
    for file in ["questions.jsonl", "syllabi.jsonl", "rejected.jsonl", "usage.jsonl"] {
        let without_second: Vec<&str> =
            expected[file].lines().enumerate().filter(|&(line, _)| line != 1).map(|(_, line)| line).collect();
        std::fs::write(bench.file(file), without_second.join("\n") + "\n")?;
        let asked_for = Rc::new(Cell::new(0));
        let counter = Rc::clone(&asked_for);
        let script: Rc<dyn Fn(&Request) -> Reply> = Rc::new(move |request| {
            counter.set(counter.get() + 1);
            spoilt(request)
        });
        bench.run(|| Scripted::new(Rc::clone(&script), 4)).1?;
        if file == "usage.jsonl" {
            assert_eq!(asked_for.get(), 0, "a line of usage is no reason to ask again");
        } else {
            assert_eq!(asked_for.get(), 1, "{file}");
            assert_eq!(bench.files()?, expected, "{file}");
        }
    }
    Ok(())
}

#[test]
fn answers_of_a_changed_question_are_made_again() -> Result<()> {
    let bench = Bench::new()?;
    bench.run(|| good(4)).1?;
    let questions = std::fs::read_to_string(bench.file("questions.jsonl"))?;
    let last = rows(&bench.file("questions.jsonl"))?.pop().expect("there are questions");
    let old = last["question"].as_str().expect("a question");
    std::fs::write(bench.file("questions.jsonl"), questions.replace(old, "Who are you?"))?;
    let (loaded, result) = bench.run(|| good(4));
    result?;
    assert_eq!(loaded, 1);
    let answer = rows(&bench.file("answers.jsonl"))?.pop().expect("there are answers");
    assert_eq!(
        (answer["question"].as_str(), answer["answer"].as_str()),
        (Some("Who are you?"), Some("It is Who are you?."))
    );
    let aside = rows(&bench.file("answers.set_aside.jsonl"))?;
    assert_eq!((aside.len(), aside[0]["question"].as_str()), (1, Some(old)), "the old answer is not lost");
    Ok(())
}

#[test]
fn refusals_and_unservable_requests_are_counted_by_name() -> Result<()> {
    let bench = Bench::new()?;
    let script = |request: &Request| match asked(request) {
        Asked::Answer if request.sampling.seed.is_multiple_of(2) => {
            Reply::Text("I'm sorry, but I can't help with that.".into())
        }
        Asked::Question if request.sampling.seed.is_multiple_of(3) => Reply::Failed("no slot".into()),
        _ => Reply::Text(good_reply(request)),
    };
    bench.run(|| scripted(script)).1?;
    let stats: Stats = read_json(&bench.file("stats.json"))?;
    let rejected = |name: &str| stats.steps.iter().find(|step| step.step == name).map(|step| step.rejected.clone());
    assert!(rejected("questions").is_some_and(|reasons| reasons.keys().eq(["unservable"])));
    assert!(rejected("answers").is_some_and(|reasons| reasons.keys().eq(["refused"])));
    Ok(())
}

#[test]
fn a_teacher_with_other_weights_is_refused_and_an_interruption_passes_through() -> Result<()> {
    let bench = Bench::new()?;
    let (_, result) = bench.run(|| good(4).killed_after(6));
    result.expect_err("killed");
    let (_, result) = bench.run(|| good(4).with_hash("another"));
    assert_eq!(exit_code(&result.expect_err("another teacher")), 2);
    let run_dir = RunDir::open(&bench.run_dir(), &bench.config)?;
    let error = super::run(&bench.config, &run_dir, Extra::default(), &mut |_| Err(anyhow!(Failure::Interrupted)));
    assert_eq!(exit_code(&error.expect_err("interrupted while loading")), 130);
    Ok(())
}

#[test]
fn questions_and_answers_may_come_from_two_models_of_which_one_is_loaded_at_a_time() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.config.answerer.model = "another".into();
    let loaded = Rc::new(std::cell::RefCell::new(Vec::new()));
    let alive = Rc::new(());
    let run = |hash: &str| -> Result<()> {
        let run_dir = RunDir::open(&bench.run_dir(), &bench.config)?;
        super::run(&bench.config, &run_dir, Extra::default(), &mut |role| {
            assert_eq!(Rc::strong_count(&alive), 1, "the first model is gone before the second comes");
            loaded.borrow_mut().push(role);
            let held = Rc::clone(&alive);
            let script = move |request: &Request| {
                let _held = &held;
                let is_answer = asked(request) == Asked::Answer;
                assert_eq!(is_answer, role == Role::Answerer);
                Reply::Text(if is_answer { "So it is.".into() } else { good_reply(request) })
            };
            let model = Scripted::new(Rc::new(script), 4);
            Ok(Box::new(if role == Role::Answerer { model.with_hash(hash) } else { model }) as Box<dyn LanguageModel>)
        })
    };
    run("other weights")?;
    assert_eq!(*loaded.borrow(), [Role::Teacher, Role::Answerer]);
    assert!(rows(&bench.file("answers.jsonl"))?.iter().all(|row| row["answer"] == "So it is."));
    std::fs::remove_file(bench.file("answers.jsonl"))?;
    let error = run("weights again other").expect_err("the run was begun with another answerer");
    assert!(error.to_string().contains("the answerer `scripted`"), "{error}");
    run("other weights")
}

#[test]
fn a_teacher_that_writes_nothing_usable_ends_the_run_with_a_reason() -> Result<()> {
    let bench = Bench::new()?;
    let (_, result) = bench.run(|| scripted(|_| Reply::Text(String::new())));
    let message = result.expect_err("there is nothing").to_string();
    assert!(message.contains("no question-answer pair was made (0 subjects"), "{message}");
    Ok(())
}

#[test]
fn a_round_adds_new_questions_for_weak_disciplines_and_leaves_the_rest_as_it_is() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.run(|| Scripted::new(Rc::new(spoilt), 4)).1?;
    let plain = bench.files()?;
    let weak = bench.folder.path().join("weak_nodes.json");
    let nodes = serde_json::json!({"nodes": [{"discipline": "Biology", "extra_questions": 9}]});
    std::fs::write(&weak, nodes.to_string())?;
    bench.weak = Some(weak);
    bench.run(|| Scripted::new(Rc::new(spoilt), 4)).1?;
    let grown = bench.files()?;
    for file in ["subjects.jsonl", "syllabi.jsonl", "questions.jsonl", "answers.jsonl"] {
        assert!(grown[file].starts_with(&plain[file]), "{file} goes on where it was");
        let all = rows(&bench.file(file))?;
        assert_eq!(ids(&bench.file(file))?.len(), all.len(), "{file}: no id comes twice");
        let added = &all[plain[file].lines().count()..];
        assert_eq!(added.is_empty(), file == "subjects.jsonl", "{file}");
        assert!(added.iter().all(|row| row["discipline"] == "Biology"), "{file}");
    }
    // New questions come from new syllabi, so none repeats a combination of an old one.
    let of = |text: &str| -> BTreeSet<String> {
        let parent = |line: &str| serde_json::from_str::<Value>(line).expect("a row")["parent"].to_string();
        text.lines().map(parent).collect()
    };
    let (old, new) = (&plain["questions.jsonl"], &grown["questions.jsonl"][plain["questions.jsonl"].len()..]);
    assert!(of(old).is_disjoint(&of(new)));
    let stats: Stats = read_json(&bench.file("stats.json"))?;
    assert!(stats.steps.iter().any(|step| step.step == "questions" && step.requested == 12 + 9), "{stats:?}");

    // The round is part of the run from now on, with the file and without it; and a kill anywhere changes nothing.
    for weak in [None, bench.weak.clone()] {
        bench.weak = weak;
        let (loaded, result) = bench.run(|| good(4));
        result?;
        assert_eq!((loaded, bench.files()?), (0, grown.clone()));
    }
    for lives in [0, 1, 3, 7, 12, 20] {
        let mut killed = Bench::new()?;
        killed.config.generate.taxonomy.clone_from(&bench.config.generate.taxonomy);
        killed.run(|| Scripted::new(Rc::new(spoilt), 4)).1?;
        killed.weak.clone_from(&bench.weak);
        // Fewer lives than the round has requests: it may end before it is killed.
        let _ = killed.run(|| Scripted::new(Rc::new(spoilt), 3).killed_after(lives));
        killed.run(|| Scripted::new(Rc::new(spoilt), 2)).1?;
        assert_eq!(killed.files()?, grown, "killed after {lives}");
    }
    Ok(())
}
