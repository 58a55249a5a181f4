//! What goes beyond the paper, all at once: files, lineage, kills, shards, bad replies.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use anyhow::Result;
use serde_json::Value;

use super::{
    Shard, Stats,
    scripted::{Asked, Reply, Scripted, asked, good_reply},
    shards,
    tests::{Bench, good, rows, spoilt},
};
use crate::{
    language_model::{LanguageModel, Request},
    records::read_json,
    run_dir::RunDir,
};

/// A bench with everything on.
fn bench() -> Result<Bench> {
    let mut bench = Bench::new()?;
    let generate = &mut bench.config.generate;
    (generate.answers_per_question, generate.follow_up_turns, generate.critique_and_rewrite) = (3, 2, true);
    (generate.cross_subject_ratio, generate.cross_discipline_ratio) = (0.3, 0.2);
    let vary = &mut generate.vary;
    (vary.task_type_ratio, vary.difficulty_ratio, vary.persona_ratio) = (0.5, 0.5, 0.5);
    (vary.region_ratio, vary.name_ratio) = (0.5, 0.5);
    bench.config.judge.model = "judge".into();
    Ok(bench)
}

/// Answers whose results differ, so that they can agree and disagree.
fn varied(request: &Request) -> Reply {
    match asked(request) {
        Asked::Answer => Reply::Text(format!("So it is {}.", request.sampling.seed % 2)),
        _ => Reply::Text(good_reply(request)),
    }
}

fn teacher(script: fn(&Request) -> Reply, max_num_seqs: usize) -> Scripted {
    Scripted::new(Rc::new(script), max_num_seqs)
}

/// Rows of a file by their ids.
fn by_id(bench: &Bench, file: &str) -> Result<BTreeMap<String, Value>> {
    Ok(rows(&bench.file(file))?.into_iter().map(|row| (row["id"].as_str().expect("an id").to_owned(), row)).collect())
}

#[test]
fn every_part_leaves_its_columns_and_can_be_traced() -> Result<()> {
    let bench = bench()?;
    bench.run(|| teacher(varied, 4)).1?;
    let answers = rows(&bench.file("answers.jsonl"))?;
    assert_eq!(answers.len(), 12);
    let (samples, questions) = (by_id(&bench, "answer_samples.jsonl")?, by_id(&bench, "questions.jsonl")?);
    assert_eq!((samples.len(), questions.len()), (36, 12));
    let results = |parent: &str| -> Vec<&str> {
        samples.values().filter(|row| row["parent"] == *parent).filter_map(|row| row["answer"].as_str()).collect()
    };
    let mut rewritten = 0;
    for row in &answers {
        let sample = &samples[row["id"].as_str().expect("an id")];
        assert_eq!(row["parent"], sample["parent"]);
        let question = &questions[row["parent"].as_str().expect("a parent")];
        for column in ["question", "task_type", "difficulty", "persona", "region", "name", "other_subject"] {
            assert_eq!(row[column], question[column], "{column}");
        }
        let results = results(row["parent"].as_str().expect("a parent"));
        let same = results.iter().filter(|result| sample["answer"] == **result).count();
        assert!(same >= 2, "of three answers with two results the majority's stays");
        assert_eq!(row["agreement"], same as f64 / 3.0);
        let is_rewritten = row["rewritten"] == true;
        assert_eq!(is_rewritten, row["answer"] != sample["answer"]);
        rewritten += usize::from(is_rewritten);
        assert!((1..=3).contains(&row["judge_score"].as_u64().expect("a score")));
        let turns = row["messages"].as_array().expect("a conversation");
        assert_eq!(turns.len(), 6);
        assert_eq!((&turns[0]["content"], &turns[1]["content"]), (&row["question"], &row["answer"]));
        assert!(turns[2]["content"].as_str().is_some_and(|text| text.starts_with("And what of")));
    }
    assert!((1..12).contains(&rewritten), "{rewritten}");
    let strategies = |strategy| questions.values().filter(|row| row["strategy"] == strategy).count();
    assert!(strategies(3) >= 3 && strategies(1) + strategies(2) + strategies(3) == 12, "{questions:?}");
    let (loaded, result) = bench.run(|| good(4));
    result?;
    assert_eq!((loaded, rows(&bench.file("answers.jsonl"))?), (0, answers), "nothing is left to do");
    Ok(())
}

#[test]
fn a_score_or_a_second_answer_leaves_the_questions_and_first_answers_as_they_are() -> Result<()> {
    let plain = Bench::new()?;
    plain.run(|| teacher(varied, 4)).1?;
    let (mut judged, mut several) = (Bench::new()?, Bench::new()?);
    judged.config.judge.model = "judge".into();
    several.config.generate.answers_per_question = 2;
    let expected = plain.files()?;
    for bench in [judged, several] {
        bench.run(|| teacher(varied, 3)).1?;
        assert_eq!(bench.files()?["questions.jsonl"], expected["questions.jsonl"]);
        let first: Vec<Value> =
            rows(&bench.file("answer_samples.jsonl"))?.into_iter().filter(|row| row["sample"] == 0).collect();
        let plain = rows(&plain.file("answers.jsonl"))?;
        assert_eq!(first.len(), plain.len());
        assert!(
            first.iter().zip(&plain).all(|(row, plain)| row["id"] == plain["id"] && row["answer"] == plain["answer"])
        );
    }
    Ok(())
}

#[test]
fn the_files_are_the_same_at_any_batch_size_after_kills_and_with_shards() -> Result<()> {
    let whole = bench()?;
    whole.run(|| teacher(spoilt, 3)).1?;
    let expected = whole.files()?;
    let stats: Stats = read_json(&whole.file("stats.json"))?;
    let results: usize = stats.steps.iter().map(|step| step.requested).sum();
    for max_num_seqs in [1, 64] {
        let again = bench()?;
        again.run(|| teacher(spoilt, max_num_seqs)).1?;
        assert!(again.files()? == expected, "{max_num_seqs} at once");
    }
    for lives in (0..results).step_by(3) {
        let killed = bench()?;
        let left = Rc::new(Cell::new(lives));
        let error = killed.run(|| teacher(spoilt, 3).sharing(&left)).1.expect_err("killed");
        assert_eq!(error.to_string(), "killed");
        for name in ["answer_samples.jsonl", "critiques.jsonl", "judgements.jsonl"] {
            if killed.file(name).exists() {
                let text = std::fs::read_to_string(killed.file(name))?;
                std::fs::write(killed.file(name), text + "{\"id\":\"torn")?;
            }
        }
        killed.run(|| teacher(spoilt, 2)).1?;
        assert!(killed.files()? == expected, "killed after {lives} of {results}");
    }
    for of in [2, 5] {
        let sharded = bench()?;
        for index in (0..of).rev() {
            let run_dir = RunDir::open_shared(&sharded.run_dir(), &sharded.config)?;
            shards::run(&sharded.config, &run_dir, Shard { index, of }, &mut |_| {
                Ok(Box::new(teacher(spoilt, 1 + index)) as Box<dyn LanguageModel>)
            })?;
        }
        shards::merge(&sharded.config, &RunDir::open(&sharded.run_dir(), &sharded.config)?)?;
        assert!(sharded.files()? == expected, "{of} shards");
    }
    Ok(())
}

#[test]
fn what_a_part_cannot_do_leaves_the_conversation_as_it_was() -> Result<()> {
    let bench = bench()?;
    let script = |request: &Request| match asked(request) {
        Asked::Rewrite | Asked::Judgement => Reply::Text("  ".into()),
        Asked::FollowUp if request.sampling.seed.is_multiple_of(2) => Reply::Cut("And".into()),
        _ => varied(request),
    };
    bench.run(|| teacher(script, 4)).1?;
    let answers = rows(&bench.file("answers.jsonl"))?;
    assert_eq!(answers.len(), 12);
    assert!(answers.iter().all(|row| row.get("judge_score").is_none() && row.get("rewritten").is_none()));
    let lengths: Vec<usize> = answers.iter().map(|row| row["messages"].as_array().map_or(2, Vec::len)).collect();
    assert!(
        lengths.contains(&2) && lengths.contains(&4) && lengths.iter().all(|length| [2, 4, 6].contains(length)),
        "{lengths:?}"
    );
    let stats: Stats = read_json(&bench.file("stats.json"))?;
    for step in &stats.steps {
        assert_eq!(step.requested, step.kept + step.rejected.values().sum::<usize>(), "{step:?}");
    }
    let step = |name: &str| stats.steps.iter().find(|step| step.step == name).expect("a step");
    assert_eq!((step("judgements").requested, step("judgements").rejected["empty"]), (12, 12));
    assert_eq!(step("rewrites").kept, 0);
    assert_eq!(step("follow_up_questions_2").requested, lengths.iter().filter(|length| **length >= 4).count());
    Ok(())
}
