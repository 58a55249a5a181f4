//! Shards: the files of one process, whatever the number of shards, their order, and the kills on the way.

use std::{collections::BTreeMap, fs, path::Path, rc::Rc};

use anyhow::{Result, bail};
use proptest::prelude::*;

use super::{
    Shard,
    scripted::{Reply, Scripted, good_reply},
    shards,
    tests::{Bench, good, spoilt},
};
use crate::{error::exit_code, language_model::LanguageModel, run_dir::RunDir};

fn shard(index: usize, of: usize) -> Shard {
    Shard { index, of }
}

/// Runs a shard of a bench's stage in a run directory.
fn run_shard(bench: &Bench, run_dir: &Path, shard: Shard, mut teacher: impl FnMut() -> Scripted) -> Result<()> {
    let run_dir = RunDir::open_shared(run_dir, &bench.config)?;
    shards::run(&bench.config, &run_dir, shard, &mut |_| Ok(Box::new(teacher()) as Box<dyn LanguageModel>))
}

fn merge(bench: &Bench, run_dir: &Path) -> Result<()> {
    shards::merge(&bench.config, &RunDir::open(run_dir, &bench.config)?)
}

fn spoilt_teacher(max_num_seqs: usize) -> Scripted {
    Scripted::new(Rc::new(spoilt), max_num_seqs)
}

/// The files of one process.
fn expected() -> Result<BTreeMap<String, String>> {
    let whole = Bench::new()?;
    whole.run(|| spoilt_teacher(3)).1?;
    whole.files()
}

#[test]
fn any_number_of_shards_in_any_order_gives_the_files_of_one_process() -> Result<()> {
    let expected = expected()?;
    for of in [1, 2, 3, 8, 40] {
        let bench = Bench::new()?;
        for index in (0..of).rev() {
            run_shard(&bench, &bench.run_dir(), shard(index, of), || spoilt_teacher(1 + index % 4))?;
        }
        // The last shard began: it did all that is needed by all, so the others asked for their questions alone.
        merge(&bench, &bench.run_dir())?;
        assert_eq!(bench.files()?, expected, "{of} shards");
        merge(&bench, &bench.run_dir())?;
        assert_eq!(bench.files()?, expected, "merged twice");
        let (loaded, result) = bench.run(|| good(1));
        result?;
        assert_eq!((loaded, bench.files()?), (0, expected.clone()), "and the stage is finished");
    }
    Ok(())
}

#[test]
fn shards_that_are_killed_anywhere_give_the_same_files() -> Result<()> {
    let expected = expected()?;
    for lives in 0..20 {
        let bench = Bench::new()?;
        for index in [1, 2, 0] {
            while let Err(error) =
                run_shard(&bench, &bench.run_dir(), shard(index, 3), || spoilt_teacher(1).killed_after(lives + 1))
            {
                assert_eq!(error.to_string(), "killed");
                // What a kill in the midst of a write leaves.
                let part = bench.file("shards/questions").join(format!("{index}-of-3/questions.jsonl"));
                if part.exists() {
                    let text = fs::read_to_string(&part)?;
                    fs::write(&part, text + "{\"id\":\"torn")?;
                }
            }
        }
        merge(&bench, &bench.run_dir())?;
        assert_eq!(bench.files()?, expected, "each killed after {lives}, until they were through");
    }
    Ok(())
}

#[test]
fn shards_of_machines_that_share_nothing_are_copied_together() -> Result<()> {
    let expected = expected()?;
    let bench = Bench::new()?;
    let machine = |index: usize| bench.folder.path().join(format!("machine {index}"));
    for index in 0..3 {
        run_shard(&bench, &machine(index), shard(index, 3), || spoilt_teacher(2))?;
    }
    for index in 0..3 {
        copy(&machine(index), &bench.run_dir())?;
    }
    merge(&bench, &bench.run_dir())?;
    assert_eq!(bench.files()?, expected);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, target) =
            (entry.as_ref().map(|entry| entry.path()), entry.as_ref().map(|it| to.join(it.file_name())));
        let (Ok(path), Ok(target)) = (path, target) else { bail!("cannot read `{}`", from.display()) };
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            let _ = fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

#[test]
fn processes_at_the_same_time_share_what_all_need_and_ask_for_nothing_twice() -> Result<()> {
    let expected = expected()?;
    let bench = Bench::new()?;
    let (config, root) = (&bench.config, bench.run_dir());
    let asked: Result<Vec<usize>> = std::thread::scope(|scope| {
        let run = |index: usize| {
            let root = root.clone();
            scope.spawn(move || -> Result<usize> {
                let count = Rc::new(std::cell::Cell::new(0));
                let counted = Rc::clone(&count);
                let script: Rc<dyn Fn(&crate::language_model::Request) -> Reply> = Rc::new(move |request| {
                    counted.set(counted.get() + 1);
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    spoilt(request)
                });
                let run_dir = RunDir::open_shared(&root, config)?;
                shards::run(config, &run_dir, shard(index, 4), &mut |_| {
                    Ok(Box::new(Scripted::new(Rc::clone(&script), 2)) as Box<dyn LanguageModel>)
                })?;
                Ok(count.get())
            })
        };
        let running: Vec<_> = (0..4).map(run).collect();
        running.into_iter().map(|process| process.join().expect("no panic")).collect()
    });
    merge(&bench, &bench.run_dir())?;
    assert_eq!(bench.files()?, expected);
    let stats: super::Stats = crate::records::read_json(&bench.file("stats.json"))?;
    let requests: usize = stats.steps.iter().map(|step| step.requested).sum();
    assert_eq!(asked?.iter().sum::<usize>(), requests, "every request is asked once, by one of them");
    Ok(())
}

#[test]
fn merging_names_what_is_missing_and_replaces_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let error = merge(&bench, &bench.run_dir()).expect_err("there is no shard");
    assert_eq!(exit_code(&error), 3);
    run_shard(&bench, &bench.run_dir(), shard(0, 3), || good(2))?;
    run_shard(&bench, &bench.run_dir(), shard(2, 3), || good(2).killed_after(2)).expect_err("killed");
    let error = merge(&bench, &bench.run_dir()).expect_err("two are missing");
    assert_eq!(exit_code(&error), 3);
    let message = error.to_string();
    assert!(message.contains("lacks shard 1/3 (not begun), 2/3 (not finished)"), "{message}");
    assert!(!bench.file("answers.jsonl").exists());

    // The plain stage does not begin anew beside the shards, nor do others in other numbers.
    let (loaded, result) = bench.run(|| good(2));
    assert_eq!((loaded, exit_code(&result.expect_err("shards are not merged"))), (0, 3));
    let error = run_shard(&bench, &bench.run_dir(), shard(0, 4), || good(2)).expect_err("another number");
    assert!(error.to_string().contains("holds 3 shards, not 4"), "{error}");

    run_shard(&bench, &bench.run_dir(), shard(1, 3), || good(2))?;
    run_shard(&bench, &bench.run_dir(), shard(2, 3), || good(2))?;
    let part = bench.file("shards/answers/1-of-3/answers.jsonl");
    let text = fs::read_to_string(&part)?;
    fs::write(&part, text.split_inclusive('\n').skip(1).collect::<String>())?;
    let error = merge(&bench, &bench.run_dir()).expect_err("an answer is gone");
    assert!(error.to_string().contains("do not answer the whole work list"), "{error}");
    assert!(!bench.file("answers.jsonl").exists());
    run_shard(&bench, &bench.run_dir(), shard(1, 3), || good(2))?;
    merge(&bench, &bench.run_dir())
}

#[test]
fn a_run_without_shards_is_not_begun_again_in_shards_and_other_syllabi_are_named() -> Result<()> {
    let bench = Bench::new()?;
    bench.run(|| good(2).killed_after(3)).1.expect_err("killed");
    let error = run_shard(&bench, &bench.run_dir(), shard(0, 2), || good(2)).expect_err("half a run is there");
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("was begun without shards"), "{error}");

    let bench = Bench::new()?;
    let (one, two) = (bench.folder.path().join("one"), bench.folder.path().join("two"));
    run_shard(&bench, &one, shard(0, 2), || good(2))?;
    // Another machine, on which the teacher writes something else.
    let other = |request: &crate::language_model::Request| Reply::Text(good_reply(request).replace("alpha", "gamma"));
    run_shard(&bench, &two, shard(1, 2), || Scripted::new(Rc::new(other), 2))?;
    copy(&two, &one)?;
    let error = merge(&bench, &one).expect_err("they differ");
    assert!(error.to_string().contains("shard 1/2 was made from other syllabi"), "{error}");
    Ok(())
}

#[test]
fn a_part_with_few_results_is_not_judged_alone() -> Result<()> {
    let mut bench = Bench::new()?;
    bench.config.generate.min_yield = 0.5;
    // Every shard has one question or two, and a third of them fails.
    let script = |request: &crate::language_model::Request| match super::scripted::asked(request) {
        super::scripted::Asked::Question if request.sampling.seed.is_multiple_of(3) => Reply::Text(String::new()),
        _ => Reply::Text(good_reply(request)),
    };
    for index in 0..9 {
        run_shard(&bench, &bench.run_dir(), shard(index, 9), || Scripted::new(Rc::new(script), 2))?;
    }
    merge(&bench, &bench.run_dir())
}

#[test]
fn shards_are_written_i_of_n() {
    assert_eq!("0/8".parse(), Ok(shard(0, 8)));
    assert_eq!("7/8".parse(), Ok(shard(7, 8)));
    for wrong in ["8/8", "1", "a/b", "-1/8", "0/0", "1/8/2", "0/99999"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn ranges_are_even_and_leave_nothing_out(total in 0usize..2_000, of in 1usize..40) {
        let mut next = 0;
        for index in 0..of {
            let range = shards::range(shard(index, of), total);
            prop_assert_eq!(range.start, next);
            prop_assert!(range.len() == total / of || range.len() == total.div_ceil(of));
            next = range.end;
        }
        prop_assert_eq!(next, total);
    }
}
