//! Results and samples of a comparison, in the layout of the other tasks' files.
//!
//! `results_DATE.json` holds the overall numbers under `results`, those of disciplines and the like under `groups`;
//! `samples_TASK_DATE.jsonl` one row per question with both answers, both verdicts and the scores; `judged.json` the
//! same numbers under a name without a date, for the report.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{Gap, Judged, Judging, VERSION, summary::Verdicts};
use crate::{
    evaluate::results::{now, remove_earlier, sha256},
    records,
};

/// Writes the files of a finished comparison and removes those of earlier ones. The results file comes last.
pub fn write(
    judging: &Judging,
    judged: &Judged,
    texts: &[Option<[String; 2]>],
    verdicts: &[Option<Verdicts>],
) -> Result<()> {
    let (date, since_epoch) = now();
    let mut lines = Vec::new();
    for (doc_id, (texts, verdicts)) in texts.iter().zip(verdicts).enumerate() {
        serde_json::to_writer(&mut lines, &sample(judging, doc_id, texts.as_ref(), *verdicts))?;
        lines.push(b'\n');
    }
    let (name, folder) = (&judging.name, &judging.folder);
    records::write_atomic(&folder.join(format!("samples_{name}_{date}.jsonl")), &lines)?;
    records::write_json(&folder.join("judged.json"), judged)?;
    let summary = &judged.summary;
    let group =
        |gap: &Gap| (format!("{name}_{}_{}", gap.by, gap.name), numbers(&format!("{}: {}", gap.by, gap.name), gap));
    let groups: Map<String, Value> = summary.groups.iter().map(group).collect();
    let mut overall = numbers(name, &summary.overall);
    for (metric, value) in [
        ("position_flips", json!(summary.position_bias.flips)),
        ("first_place_advantage", json!(summary.position_bias.first_place_advantage)),
        ("unparsed_verdicts", json!(summary.unparsed)),
        ("too_long", json!(summary.too_long)),
    ] {
        overall[format!("{metric},none")] = value;
    }
    let file = json!({
        "results": {name: overall},
        "groups": groups,
        "configs": {name: {
            "task": name, "output_type": "generate_until", "doc_to_text": judging.prompt.source,
            "max_answer_tokens": judging.config.max_answer_tokens,
            "generation_kwargs": {"max_gen_toks": judging.config.max_tokens, "temperature": judging.config.temperature},
            "metadata": {"version": VERSION},
        }},
        "versions": {name: VERSION},
        "n-shot": {name: 0},
        "higher_is_better": {name: {"score_gap": true, "win_rate": true, "lose_rate": false, "position_flips": false}},
        "n-samples": {name: {"original": judging.questions.len(), "effective": summary.overall.n}},
        "config": {
            "model": "glan", "model_args": {"pretrained": judged.tuned, "against": judged.base, "judge": judged.judge},
        },
        "date": since_epoch,
        "glan_version": env!("CARGO_PKG_VERSION"),
        "evaluation_hash": judging.hash,
    });
    records::write_json(&folder.join(format!("results_{date}.json")), &file)?;
    remove_earlier(folder, &date)
}

fn numbers(alias: &str, gap: &Gap) -> Value {
    json!({
        "alias": alias,
        "sample_len": gap.n,
        "score_gap,none": gap.gap,
        "score_gap_stderr,none": gap.gap_stderr.map_or(json!("N/A"), |stderr| json!(stderr)),
        "score_gap_ci95,none": gap.gap_ci95,
        "base_score,none": gap.base,
        "tuned_score,none": gap.tuned,
        "win_rate,none": gap.win,
        "tie_rate,none": gap.tie,
        "lose_rate,none": gap.lose,
    })
}

fn sample(judging: &Judging, doc_id: usize, texts: Option<&[String; 2]>, verdicts: Option<Verdicts>) -> Value {
    let question = &judging.questions[doc_id];
    let answer = |side: usize| judging.answered[side].as_ref().map(|(_, answers)| answers[doc_id].as_str());
    let averaged = verdicts.and_then(|verdicts| verdicts.averaged());
    json!({
        "doc_id": doc_id,
        "doc": question.row,
        "question": question.text(),
        "answers": {"base": answer(0), "tuned": answer(1)},
        "verdicts": texts.map(|[base_first, tuned_first]| json!({"base_first": base_first, "tuned_first": tuned_first})),
        // [base, tuned], whoever stood in front.
        "scores": verdicts.map(|it| json!({"base_first": it.base_first, "tuned_first": it.tuned_first})),
        "filter": "none",
        "metrics": ["score_gap"],
        "doc_hash": sha256(&format!("{:#}", question.row)),
        "base_score": averaged.map(|[base, _]| base),
        "tuned_score": averaged.map(|[_, tuned]| tuned),
        "score_gap": averaged.map(|[base, tuned]| tuned - base),
    })
}
