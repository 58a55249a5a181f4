//! What a long run needs beside going on: a pilot that says what it will cost, and one branch drawn anew.

use std::{cell::Cell, collections::BTreeSet, rc::Rc};

use anyhow::Result;
use serde_json::Value;

use super::{
    Estimate, Stats, estimate,
    scripted::{Asked, Reply, Scripted, asked, good_reply},
    shards,
    tests::{Bench, good, rows, spoilt},
};
use crate::{
    error::exit_code,
    language_model::{LanguageModel, Request},
    records::read_json,
    run_dir::RunDir,
};

/// 200 questions, and a pilot of 10.
fn long() -> Result<Bench> {
    let mut bench = Bench::new()?;
    bench.config.generate.num_questions = 200;
    bench.config.generate.pilot_questions = 10;
    bench.config.generate.syllabi_per_subject = 4;
    Ok(bench)
}

type Script = Rc<dyn Fn(&Request) -> Reply>;

/// A script that counts what it is asked.
fn counting(script: fn(&Request) -> Reply) -> (Rc<Cell<usize>>, Script) {
    let count = Rc::new(Cell::new(0));
    let counter = Rc::clone(&count);
    let script = move |request: &Request| {
        counter.set(counter.get() + 1);
        script(request)
    };
    (count, Rc::new(script))
}

fn do_estimate(bench: &Bench, script: &Script) -> Result<Estimate> {
    let run_dir = RunDir::open(&bench.run_dir(), &bench.config)?;
    estimate(&bench.config, &run_dir, &mut |_| {
        Ok(Box::new(Scripted::new(Rc::clone(script), 3)) as Box<dyn LanguageModel>)
    })
}

#[test]
fn a_pilot_says_what_the_run_will_be_and_its_rows_are_the_run_s() -> Result<()> {
    let mut without = long()?;
    without.config.generate.pilot_questions = 0;
    without.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
    let expected = without.files()?;
    let stats: Stats = read_json(&without.file("stats.json"))?;
    let requests: usize = stats.steps.iter().map(|step| step.requested).sum();

    // Asked for alone, then the run; and by the run itself.
    for alone in [true, false] {
        let bench = long()?;
        let (count, script) = counting(spoilt);
        if alone {
            let estimate = do_estimate(&bench, &script)?;
            assert_eq!(estimate, do_estimate(&bench, &script)?, "it is asked once");
            assert!(!bench.file("questions.jsonl").exists());
            // Ten questions estimate two hundred: the truth lies within three standard errors.
            let truth = rows(&without.file("answers.jsonl"))?.len() as f64;
            assert!((estimate.pairs - truth).abs() <= 3.0 * estimate.pairs_stderr.max(1.0), "{estimate:?}: {truth}");
            assert_eq!((estimate.questions, estimate.pilot[0].requested), (200, 10));
            let tokens: usize = stats.steps.iter().rev().take(2).map(|step| step.completion_tokens).sum();
            assert!((0.5..2.0).contains(&(estimate.completion_tokens / tokens as f64)), "{estimate:?}: {tokens}");
            assert!(estimate.hours > 0.0);
        }
        bench.run(|| Scripted::new(Rc::clone(&script), 3)).1?;
        assert!(bench.file("pilot/estimate.json").exists());
        assert_eq!(bench.files()?, expected, "the pilot changes no byte");
        assert_eq!(count.get(), requests, "and what it asked is not asked again");
    }
    Ok(())
}

#[test]
fn a_pilot_is_spread_over_all_disciplines() -> Result<()> {
    let bench = long()?;
    let (_, script) = counting(|request| Reply::Text(good_reply(request)));
    do_estimate(&bench, &script)?;
    let of: Vec<Value> = rows(&bench.file("pilot/questions.jsonl"))?;
    let parents: BTreeSet<String> = of.iter().map(|row| row["parent"].to_string()).collect();
    let disciplines: BTreeSet<String> = of.iter().map(|row| row["discipline"].to_string()).collect();
    assert_eq!((of.len(), disciplines.len()), (10, 2));
    assert!(parents.len() >= 8, "ten questions of {} syllabi", parents.len());
    Ok(())
}

#[test]
fn a_pilot_under_the_floor_stops_the_run_before_it_begins() -> Result<()> {
    let mut bench = long()?;
    bench.config.generate.min_yield = 0.5;
    let (count, script) = counting(|request| match asked(request) {
        Asked::Answer => Reply::Text(String::new()),
        _ => Reply::Text(good_reply(request)),
    });
    let error = bench.run(|| Scripted::new(Rc::clone(&script), 3)).1.expect_err("no answer is any good");
    assert!(error.to_string().contains("0 of the first 10 results of `answers`"), "{error}");
    assert!(!bench.file("questions.jsonl").exists(), "nothing of the long run was asked");
    let asked_until_then = count.get();
    // A lower floor goes on, with what the pilot has.
    bench.config.generate.min_yield = 0.0;
    bench.run(|| good(3)).1?;
    assert_eq!(rows(&bench.file("questions.jsonl"))?.len(), 200);
    assert_eq!(rows(&bench.file("answers.jsonl"))?.len(), 190, "the pilot's ten answers were empty");
    assert!(asked_until_then > 20);
    Ok(())
}

#[test]
fn shards_use_a_pilot_and_make_none() -> Result<()> {
    let whole = long()?;
    whole.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
    let bench = long()?;
    for index in 0..2 {
        let run_dir = RunDir::open_shared(&bench.run_dir(), &bench.config)?;
        shards::run(&bench.config, &run_dir, shards::Shard { index, of: 2 }, &mut |_| {
            Ok(Box::new(Scripted::new(Rc::new(spoilt), 3)) as Box<dyn LanguageModel>)
        })?;
    }
    assert!(!bench.file("pilot").exists());
    shards::merge(&bench.config, &RunDir::open(&bench.run_dir(), &bench.config)?)?;
    assert_eq!(bench.files()?, whole.files()?);
    Ok(())
}

#[test]
fn one_branch_is_drawn_anew_and_everything_else_stays_to_the_byte() -> Result<()> {
    for (only, covers) in
        [("Nature > Physics", ("discipline", "Physics")), ("Physics > Common topics", ("subject", "Common topics"))]
    {
        let mut bench = Bench::new()?;
        bench.config.generate.num_questions = 40;
        bench.run(|| good(3)).1?;
        let before = bench.files()?;
        let (key, name) = covers;
        let is_of = |row: &Value| row[key] == name && row["discipline"] == "Physics";
        bench.only = Some(only);
        let (count, script) = counting(|request| Reply::Text(good_reply(request)));
        bench.run(|| Scripted::new(Rc::clone(&script), 3)).1?;
        for file in ["syllabi.jsonl", "questions.jsonl", "answers.jsonl"] {
            let after = rows(&bench.file(file))?;
            let old: Vec<Value> = before[file].lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            let rest = |rows: &[Value]| -> Vec<Value> { rows.iter().filter(|row| !is_of(row)).cloned().collect() };
            assert_eq!(rest(&after), rest(&old), "{only}: {file} beside the branch");
            let ids = |rows: &[Value]| -> BTreeSet<String> {
                rows.iter().filter(|row| is_of(row)).map(|row| row["id"].to_string()).collect()
            };
            assert!(!ids(&after).is_empty() && ids(&after).is_disjoint(&ids(&old)), "{only}: {file} of the branch");
        }
        let others = rows(&bench.file("answers.jsonl"))?.iter().filter(|row| !is_of(row)).count();
        let stats: Stats = read_json(&bench.file("stats.json"))?;
        let all: usize = stats.steps.iter().map(|step| step.requested).sum();
        assert!(count.get() + 2 * others <= all, "{only}: {} of {all} requests were made", count.get());

        // It is part of the run from now on; asked for once more it is drawn once more.
        let drawn = bench.files()?;
        bench.only = None;
        let (loaded, result) = bench.run(|| good(3));
        result?;
        assert_eq!((loaded, bench.files()?), (0, drawn.clone()));
        bench.only = Some(only);
        bench.run(|| good(3)).1?;
        assert_ne!(bench.files()?["answers.jsonl"], drawn["answers.jsonl"]);
    }
    Ok(())
}

#[test]
fn one_branch_survives_a_kill_after_any_result() -> Result<()> {
    let draw = || -> Result<Bench> {
        let mut bench = Bench::new()?;
        bench.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
        bench.only = Some("Physics");
        Ok(bench)
    };
    let whole = draw()?;
    whole.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
    let mut expected = whole.files()?;
    expected.retain(|name, _| !name.contains("set_aside"));
    for lives in 0..18 {
        let bench = draw()?;
        // With as many lives as it needs it may end before it is killed; the branch is then there.
        if bench.run(|| Scripted::new(Rc::new(spoilt), 2).killed_after(lives)).1.is_ok() {
            continue;
        }
        bench.run(|| Scripted::new(Rc::new(spoilt), 3)).1?;
        let mut files = bench.files()?;
        files.retain(|name, _| !name.contains("set_aside"));
        assert_eq!(files, expected, "killed after {lives}");
    }
    Ok(())
}

#[test]
fn a_branch_of_an_unfinished_run_and_one_that_is_not_there_are_usage_errors() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.run(|| good(3).killed_after(8)).1.expect_err("killed");
    bench.only = Some("Physics");
    let error = bench.run(|| good(3)).1.expect_err("not finished");
    assert!(exit_code(&error) == 2 && error.to_string().contains("is not finished"), "{error}");
    bench.only = None;
    bench.run(|| good(3)).1?;
    bench.only = Some("Poetry");
    let error = bench.run(|| good(3)).1.expect_err("no such branch");
    assert!(exit_code(&error) == 2 && error.to_string().contains("`Poetry` names no field"), "{error}");
    Ok(())
}
