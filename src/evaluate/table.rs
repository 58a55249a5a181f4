//! Scores as tables for people.

use serde_json::Value;

use super::{compare::Comparison, compare_results::ResultsComparison, improvement::Improvement};

/// Base and student side by side, in per cent; the difference is in percentage points.
pub fn comparison(comparison: &Comparison, fewshot: usize) -> String {
    let fewshot = format!("base {fewshot}-shot");
    let header = ["task", "metric", "n", "base", &fewshot, "tuned", "difference", "95% interval", "p", "p (Holm)", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &comparison.tasks {
        rows.push(vec![
            row.task.clone(),
            row.metric.strip_suffix(",none").unwrap_or(&row.metric).to_owned(),
            row.n.to_string(),
            percent(row.base),
            row.base_fewshot.map_or_else(|| "-".to_owned(), percent),
            percent(row.tuned),
            points(row.tuned - row.base),
            interval(row.difference_ci95, 100.0, 1),
            p_value(row.p_value),
            p_value(row.p_holm),
            row.change.text().to_owned(),
        ]);
    }
    let mut lines = align(&rows, 2);
    lines.extend(comparison.skipped.iter().map(|skipped| format!("{} skipped: {}", skipped.task, skipped.reason)));
    lines.join("\n")
}

/// Two evaluations side by side. Metrics are shown as they are: not every one is a share.
pub fn results_comparison(comparison: &ResultsComparison) -> String {
    let header = ["task", "metric", "n", "A", "B", "B - A", "95% interval", "p", "p (Holm)", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &comparison.tasks {
        rows.push(vec![
            row.task.clone(),
            row.metric.strip_suffix(",none").unwrap_or(&row.metric).to_owned(),
            row.n.to_string(),
            format!("{:.4}", row.a),
            format!("{:.4}", row.b),
            format!("{:+.4}", row.delta),
            interval(row.delta_ci95, 1.0, 4),
            p_value(row.p_value),
            p_value(row.p_holm),
            row.change.text().to_owned(),
        ]);
    }
    let mut lines = vec![format!("A  {}", comparison.a.display()), format!("B  {}", comparison.b.display())];
    lines.extend(align(&rows, 2));
    for (name, tasks) in [("A", &comparison.only_in_a), ("B", &comparison.only_in_b)] {
        if !tasks.is_empty() {
            lines.push(format!("only in {name}: {}", tasks.join(", ")));
        }
    }
    lines.join("\n")
}

/// What a round of the closed loop did, by discipline; shares in per cent, on held-out items.
pub fn improvement(improvement: &Improvement) -> String {
    let header = ["discipline", "", "rows", "items", "before", "after", "95% interval", "p"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for node in &improvement.nodes {
        let [low, high] = node.after_ci95;
        rows.push(vec![
            node.discipline.clone(),
            if node.is_weak { "weak" } else { "" }.to_owned(),
            format!("{} to {}", node.rows_before, node.rows_after),
            node.n.to_string(),
            percent(node.before),
            percent(node.after),
            format!("{} to {}", percent(low), percent(high)),
            p_value(node.p_value),
        ]);
    }
    let mut lines = align(&rows, 2);
    lines.push(improvement.weak.sentence("weak disciplines"));
    lines.push(improvement.others.sentence("other disciplines"));
    lines.join("\n")
}

/// One model's results file in the columns of lm-evaluation-harness, and below it what the scores leave out.
pub fn results(results: &Value) -> String {
    let header = ["Tasks", "Version", "Filter", "n-shot", "Metric", "Value", "Stderr"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (task, numbers) in results["results"].as_object().into_iter().flatten() {
        for (key, value) in numbers.as_object().into_iter().flatten() {
            let Some((metric, filter)) = key.split_once(',').filter(|(metric, _)| !metric.ends_with("_stderr")) else {
                continue;
            };
            let stderr = &numbers[format!("{metric}_stderr,{filter}")];
            rows.push(vec![
                task.clone(),
                shown(&results["versions"][task]),
                filter.to_owned(),
                shown(&results["n-shot"][task]),
                metric.to_owned(),
                four_decimals(value),
                four_decimals(stderr),
            ]);
        }
    }
    let mut lines = align(&rows, 1);
    for (task, numbers) in results["results"].as_object().into_iter().flatten() {
        let names = |key: &str| -> Vec<&str> {
            numbers[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        if let Some(partial) = numbers["partial"].as_str() {
            lines.push(format!("{task} is partial: {partial}"));
        }
        if numbers["partial"].is_array() {
            lines.push(format!("{task} is partial in {}", names("partial").join(", ")));
        }
        if numbers["missing"].is_array() {
            lines.push(format!("{task} lacks {}", names("missing").join(", ")));
        }
    }
    lines.join("\n")
}

/// Pads columns to equal widths: the first `left` to the left, the others to the right.
pub fn align(rows: &[Vec<String>], left: usize) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let pad = |(column, cell): (usize, &String)| {
        let width = widths[column];
        if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    };
    rows.iter()
        .map(|row| row.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ").trim_end().to_owned())
        .collect()
}

fn points(difference: f64) -> String {
    format!("{:+.1}", 100.0 * difference)
}

fn interval(bounds: Option<[f64; 2]>, scale: f64, decimals: usize) -> String {
    bounds.map_or_else(
        || "-".to_owned(),
        |[low, high]| format!("{:+.decimals$} to {:+.decimals$}", scale * low, scale * high),
    )
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "<0.001".to_owned() } else { format!("{p:.3}") }
}

fn percent(fraction: f64) -> String {
    format!("{:.1}%", 100.0 * fraction)
}

/// Groups have neither a version nor a number of examples of their own.
fn shown(value: &Value) -> String {
    if value.is_null() { String::new() } else { value.to_string() }
}

fn four_decimals(value: &Value) -> String {
    value.as_f64().map_or_else(|| "N/A".to_owned(), |value| format!("{value:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{TaskComparison, Verdict, paired::Change, plan::SkippedTask};

    #[test]
    fn the_comparison_shows_percentages_and_the_difference_in_points() {
        let row = TaskComparison {
            task: "primer".into(),
            metric: "exact_match,extract".into(),
            base: 0.0413,
            base_stderr: None,
            base_fewshot: Some(0.1),
            tuned: 0.75,
            tuned_stderr: None,
            p_value: 1e-9,
            p_holm: 0.04,
            change: Change::Better,
            n: 590,
            difference_ci95: Some([0.67, 0.745]),
        };
        let whole = Comparison {
            verdict: Verdict { task: "primer".into(), base: 0.0413, base_fewshot: None, tuned: 0.75, p_value: 1e-9 },
            tasks: vec![row],
            by_discipline: Vec::new(),
            skipped: vec![SkippedTask { task: "gsm8k".into(), reason: "no file".into() }],
        };
        let expected = "task    metric                 n  base  base 3-shot  tuned  difference    95% interval       p  p (Holm)\n\
                        primer  exact_match,extract  590  4.1%        10.0%  75.0%       +70.9  +67.0 to +74.5  <0.001     0.040  better\n\
                        gsm8k skipped: no file";
        assert_eq!(comparison(&whole, 3), expected);
    }

    #[test]
    fn the_results_have_one_row_per_metric_and_filter() {
        let file = serde_json::json!({
            "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "acc_norm,none": 0.25}},
            "versions": {"t": 1.0},
            "n-shot": {"t": 0},
        });
        let expected = "Tasks  Version  Filter  n-shot    Metric   Value  Stderr\n\
                        t          1.0    none       0       acc  0.5000     N/A\n\
                        t          1.0    none       0  acc_norm  0.2500     N/A";
        assert_eq!(results(&file), expected);
    }
}
