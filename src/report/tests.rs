//! The page on made-up artefacts.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;

fn write_lines(path: &Path, rows: &[Value]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder that can be made");
    fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("a file that can be written");
}

/// A run of which every stage is done.
fn finished_run(root: &Path) -> RunDir {
    let run_dir = RunDir::open(root, &Config::default()).expect("a fresh directory");
    let file = |stage: &str, name: &str| run_dir.stage_file(stage, name);
    let disciplines = ["Addition", "Fire & <Ice>"];
    let leaves: Vec<Value> = disciplines.iter().map(|name| json!({"id": "x", "parent": "y", "name": name})).collect();
    let tree =
        json!({"fields": [{"id": "f", "name": "F", "subfields": [{"id": "s", "name": "S", "disciplines": leaves}]}]});
    records::write_json(&file("generate", "taxonomy.json"), &tree).expect("written");
    for (name, count) in [("subjects", 14), ("syllabi", 14), ("questions", 1300), ("answers", 1234)] {
        write_lines(&file("generate", &format!("{name}.jsonl")), &vec![json!({"id": "x"}); count]);
    }
    write_lines(
        &file("generate", "rejected.jsonl"),
        &vec![json!({"stage": "answers", "reason": "malformed_json"}); 66],
    );
    let rejected = json!({"contaminated": 12, "exact_duplicate": 200, "format": 0, "length": 3, "near_duplicate": 19, "quality": 0});
    let splits = json!({"train": 960, "valid": 20, "test": 20});
    let near = json!({"threshold": 0.8, "bands": 16, "rows_per_band": 6, "recall_at_threshold": 0.992});
    let stats = json!({"rows_in": 1234, "rejected": rejected, "kept": 1000, "splits": splits, "near_duplicates": near});
    records::write_json(&file("curate", "stats.json"), &stats).expect("written");
    let row = |n: usize| {
        let turns = json!([{"role": "user", "content": format!("What is {n} + {n}?")},
                           {"role": "assistant", "content": format!("{n} + {n} = {}\n<script>alert(1)</script>", 2 * n)}]);
        json!({"id": n, "discipline": disciplines[n % 2], "subject": "Sums", "level": "Beginner", "messages": turns})
    };
    write_lines(&file("curate", "train.jsonl"), &(0..960).map(row).collect::<Vec<_>>());
    write_lines(&file("curate", "valid.jsonl"), &(0..20).map(row).collect::<Vec<_>>());
    write_lines(&file("curate", "test.jsonl"), &(0..20).map(row).collect::<Vec<_>>());
    let mut metrics: Vec<Value> = (1..=60)
        .map(|step| {
            let x = f64::from(step) / 60.0;
            let loss = 0.4 + 2.6 * (-4.0 * x).exp() + 0.05 * (f64::from(step) * 1.7).sin();
            json!({"step": step * 10, "epoch": 3.0 * x, "loss": loss, "learning_rate": 3e-4 * (1.0 - x), "tokens": step * 5000})
        })
        .collect();
    for step in [200, 400, 600] {
        metrics
            .push(json!({"step": step, "epoch": 3.0, "eval_loss": 0.45 + 200.0 / f64::from(step), "tokens": 300_000}));
    }
    write_lines(&file("train", "metrics.jsonl"), &metrics);
    let comparison = json!({
        "verdict": {"task": "primer", "base": 0.212, "base_fewshot": 0.401, "tuned": 0.783, "p_value": 1e-9},
        "tasks": [
            {"task": "primer", "metric": "exact_match,none", "base": 0.212, "base_stderr": 0.02, "base_fewshot": 0.401, "tuned": 0.783, "tuned_stderr": 0.017, "p_value": 1e-9, "n": 590},
            {"task": "primer_mc", "metric": "acc,none", "base": 0.41, "base_stderr": 0.024, "base_fewshot": null, "tuned": 0.402, "tuned_stderr": null, "p_value": 0.71, "n": 405},
        ],
        "by_discipline": [{"discipline": "Addition", "n": 300, "base": 0.3, "tuned": 0.9}, {"discipline": "Fire & <Ice>", "n": 290, "base": 0.1, "tuned": 0.05}],
        "skipped": [{"task": "gsm8k", "reason": "`gsm8k/test.jsonl` is missing"}],
    });
    records::write_json(&file("evaluate", "comparison.json"), &comparison).expect("written");
    for (model, right) in [("base", [0, 1, 0, 1]), ("tuned", [1, 0, 0, 1])] {
        let rows: Vec<Value> = right
            .iter()
            .enumerate()
            .map(|(n, right)| {
                let answer = if *right == 1 { format!("{}", 2 * n) } else { "I like <b>trains</b>".into() };
                json!({"doc_id": n, "doc": {"question": format!("How much is {n} and {n}?")}, "target": format!("{}", 2 * n),
                       "resps": [[answer]], "filtered_resps": [answer], "filter": "none", "exact_match": f64::from(*right)})
            })
            .collect();
        write_lines(&run_dir.stage("evaluate").join(model).join("samples_primer_2026-01-01T00-00-00.jsonl"), &rows);
        let other = json!({"doc_id": 0, "doc": {"question": "other task"}, "target": "x", "filter": "none", "exact_match": 1.0});
        write_lines(
            &run_dir.stage("evaluate").join(model).join("samples_primer_mc_2026-01-01T00-00-00.jsonl"),
            &[other],
        );
    }
    run_dir
}

#[test]
fn a_finished_run_is_told_from_verdict_to_samples() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = finished_run(folder.path());
    let page = fs::read_to_string(run(&Config::default(), &run_dir)?)?;
    for said in [
        "On primer the tuned model answers 78.3 % of 590 items correctly, 57.1 points above the base model (p &lt; 0.0001).",
        "base, few-shot",
        "1,234",
        "<td>generate: answers</td><td>malformed json</td><td class=\"n\">66</td>",
        "<td>curate</td><td>exact duplicate</td><td class=\"n\">200</td><td class=\"n\">16.2 %</td>",
        "600 steps, 3.00 epochs, 300,000 tokens. Training loss",
        "<td>Addition</td><td class=\"n\">480</td><td class=\"n\">300</td><td class=\"n\">30.0 %</td>",
        "Addition · Sums · Beginner",
        "Of 4 items of primer: 1 mended, 1 broken, 1 wrong before and after, 1 right before and after.",
        "Skipped: gsm8k",
    ] {
        assert!(page.contains(said), "`{said}` is not on the page");
    }
    assert!(!page.contains("other task") && !page.contains("Make it with"));
    Ok(())
}

#[test]
fn a_round_of_the_closed_loop_shows_its_disciplines_with_the_weak_ones_marked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = finished_run(folder.path());
    let page = render(&Config::default(), &run_dir)?;
    assert!(!page.contains("What this round did"));
    let group = |before: f64, after: f64, change: &str| json!({"n": 60, "before": before, "after": after, "difference_ci95": [0.05, 0.25], "p_value": 0.004, "change": change});
    let node = |name: &str, is_weak: bool| {
        json!({"discipline": name, "is_weak": is_weak, "n": 20, "before": 0.55, "before_ci95": [0.34, 0.74], "after": 0.75,
               "after_ci95": [0.53, 0.89], "p_value": 0.125, "rows_before": 400, "rows_after": 1190})
    };
    let improvement = json!({"task": "primer", "metric": "exact_match,none", "weak": group(0.6, 0.75, "better"),
        "others": group(0.91, 0.92, "no_difference"), "nodes": [node("Fire & <Ice>", true), node("Addition", false)]});
    records::write_json(&run_dir.stage_file("evaluate", "improvement.json"), &improvement)?;
    let page = render(&Config::default(), &run_dir)?;
    for said in [
        "The weak disciplines, together: 60.0 % before, 75.0 % after on 60 held-out items, better (p = 0.0040; the difference",
        "Fire &amp; &lt;Ice&gt; <b class=\"tag bad\">weak</b></td><td class=\"n\">400 → 1,190</td>",
        "<td>Addition</td><td class=\"n\">400 → 1,190</td><td class=\"n\">20</td><td class=\"n\">55.0 %</td><td class=\"n\">34–74</td>",
    ] {
        assert!(page.contains(said), "`{said}` is not on the page");
    }
    Ok(())
}

#[test]
fn the_audit_shows_the_rows_before_and_after_each_filter_that_removed_some() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = finished_run(folder.path());
    assert!(!render(&Config::default(), &run_dir)?.contains("Diversity and representation"));
    let stage = |name: &str, rows: usize, female: f64| {
        let mentions = |share: f64| json!({"rows": 10, "mentions": 12, "share": share});
        json!({
            "stage": name, "rows": rows, "mean_words": 40.25, "mean_chars": 200.0, "distinct_n": [0.1, 0.2, 0.3, 0.4],
            "ngram_diversity": 1.0, "sample_rows": 400, "compression_ratio": 3.5, "self_repetition": 2.25, "self_bleu": 0.5,
            "vendi_score": 77.1, "vendi_rows": 200, "nearest_neighbour": 0.625, "cluster_entropy": 0.875,
            "coverage": {"disciplines": 2, "disciplines_share": 1.0, "disciplines_entropy": 0.75,
                "rows_by_discipline": {"Addition": rows}, "subjects": 3, "subjects_share": 1.0, "key_concepts": 9,
                "key_concepts_share": 0.5},
            "representation": {
                "gender": {"entropy": 0.9, "categories": {"fe<male": mentions(female), "male": mentions(1.0 - female)}},
                "toxic": {"entropy": 0.0, "categories": {"insult": {"rows": 0, "mentions": 0, "share": 0.0}}},
            },
        })
    };
    let stages = json!([
        stage("all", 1234, 0.25),
        stage("after format", 1234, 0.25),
        stage("after near_duplicate", 1000, 0.25),
        stage("written", 1000, 0.5),
    ]);
    records::write_json(&run_dir.stage_file("curate", "audit.json"), &json!({"stages": stages}))?;
    let page = render(&Config::default(), &run_dir)?;
    for said in [
        "<td>all</td><td class=\"n\">1,234</td><td class=\"n\">40.2</td><td class=\"n\">1.000</td><td class=\"n\">3.50</td>",
        "<td>after near duplicate</td><td class=\"n\">1,000</td>",
        "<td>written</td>",
        "<b>gender</b> <span class=\"note\">20 mentions by row before, 20 after; evenness 0.900",
        "fe&lt;male</text>",
        "75.0 %</text>",
        "50.0 %</text>",
        "the Vendi score of 200 of it",
    ] {
        assert!(page.contains(said), "`{said}` is not on the page");
    }
    assert!(!page.contains("after format") && !page.contains("<b>toxic"));
    Ok(())
}

#[test]
fn the_page_is_self_contained_escaped_and_repeats_its_bytes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = finished_run(folder.path());
    let page = render(&Config::default(), &run_dir)?;
    for banned in ["<script", "<b>trains", "<Ice>", "http:", "https:", "src=", "url(", "@import", "NaN", "undefined"] {
        assert!(!page.contains(banned), "`{banned}` is on the page");
    }
    assert!(page.contains("Fire &amp; &lt;Ice&gt;") && page.contains("&lt;script&gt;alert(1)"));
    assert_eq!(page, render(&Config::default(), &run_dir)?);
    Ok(())
}

#[test]
fn everything_missing_is_a_line_that_names_the_command() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = RunDir::open(folder.path(), &Config::default())?;
    let page = render(&Config::default(), &run_dir)?;
    for stage in ["generate", "curate", "train", "evaluate"] {
        assert!(page.contains(&format!("<code>glan {stage} --run-dir")), "{stage}");
    }
    assert!(!page.contains("<svg"));
    Ok(())
}

#[test]
fn damaged_artefacts_are_left_out_and_the_rest_is_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = finished_run(folder.path());
    fs::write(run_dir.stage_file("evaluate", "comparison.json"), "{\"verdict\":")?;
    let metrics = run_dir.stage_file("train", "metrics.jsonl");
    let rows = fs::read_to_string(&metrics)?;
    fs::write(&metrics, format!("nonsense\n{rows}{{\"step\": 6"))?;
    fs::write(run_dir.stage_file("curate", "train.jsonl"), "{\"id\":1,\"messages\":\"none\"}\n[]\n")?;
    let page = render(&Config::default(), &run_dir)?;
    assert!(page.contains("glan evaluate --run-dir") && page.contains("Training loss"));
    Ok(())
}
