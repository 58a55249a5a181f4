//! How sure a score is: standard errors, an exact paired test, and a paired bootstrap.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Mean and standard error `s / sqrt(n)` with the sample standard deviation (n - 1); no error for fewer than two.
///
/// **Source**: lm-evaluation-harness's `mean_stderr`.
pub fn mean_stderr(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, None);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, None);
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, Some((variance / n).sqrt()))
}

/// Mean of the values of several tasks, each weighted by its number of documents.
pub fn weighted_mean(values: &[f64], sizes: &[usize]) -> f64 {
    debug_assert_eq!(values.len(), sizes.len(), "every value has a size");
    let total: usize = sizes.iter().sum();
    values.iter().zip(sizes).map(|(value, size)| value * *size as f64).sum::<f64>() / total as f64
}

/// Standard error of a group of tasks: the pooled variance over all documents. `None` without a degree of freedom.
///
/// **Source**: lm-evaluation-harness's `pooled_sample_stderr`.
pub fn pooled_stderr(stderrs: &[f64], sizes: &[usize]) -> Option<f64> {
    debug_assert_eq!(stderrs.len(), sizes.len(), "every standard error has a size");
    let total: usize = sizes.iter().sum();
    let freedom = total.checked_sub(sizes.len()).filter(|&freedom| freedom > 0)?;
    let squares = stderrs.iter().zip(sizes).map(|(se, &n)| n.saturating_sub(1) as f64 * se * se * n as f64);
    Some((squares.sum::<f64>() / freedom as f64 / total as f64).sqrt())
}

/// Two-sided exact McNemar test: how likely the two kinds of disagreement are as unequal as `only_first` and
/// `only_second`, or more, if each disagreement is a fair coin.
///
/// **Source**: McNemar 1947 in its exact (binomial) form: `min(1, 2 P(X <= min(b, c)))`, `X ~ Bin(b + c, 1/2)`.
pub fn mcnemar_exact(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    let fewer = only_first.min(only_second);
    // Logarithms where 2^-n would underflow; below that the plain product, whose powers of two are exact.
    let underflows = n > 1000;
    let mut term = if underflows { -(n as f64) * std::f64::consts::LN_2 } else { 0.5f64.powi(n as i32) };
    let probability = |term: f64| if underflows { term.exp() } else { term };
    let mut tail = probability(term);
    for k in 1..=fewer {
        let (choices, rank) = ((n - k + 1) as f64, k as f64);
        term = if underflows { term + choices.ln() - rank.ln() } else { term * choices / rank };
        tail += probability(term);
    }
    (2.0 * tail).min(1.0)
}

/// The test for two models' 0/1 scores on the same items.
pub fn paired_p_value(first: &[f64], second: &[f64]) -> f64 {
    debug_assert_eq!(first.len(), second.len(), "paired scores belong to the same items");
    let count = |wanted: fn(f64, f64) -> bool| first.iter().zip(second).filter(|&(&a, &b)| wanted(a, b)).count();
    mcnemar_exact(count(|a, b| a > b), count(|a, b| a < b))
}

/// 95 % percentile interval of the mean of `second - first`, by resampling items. `None` without items or resamples.
pub fn paired_bootstrap(first: &[f64], second: &[f64], resamples: usize, random: &mut ChaCha8Rng) -> Option<[f64; 2]> {
    debug_assert_eq!(first.len(), second.len(), "paired scores belong to the same items");
    if first.is_empty() || resamples == 0 {
        return None;
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
    let n = differences.len();
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| (0..n).map(|_| differences[random.random_range(0..n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| means[((resamples - 1) as f64 * quantile).round() as usize];
    Some([at(0.025), at(0.975)])
}

/// p-values corrected for being several: the chance that any of them falls below a bound by luck alone stays under
/// that bound, however the tests depend on one another. In the order given.
///
/// **Source**: Holm 1979: the k-th smallest of m times `m - k + 1`, made monotone, at most 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let (m, mut order) = (p_values.len(), ascending(p_values));
    let mut corrected = vec![0.0; m];
    let mut largest = 0.0f64;
    for (rank, index) in order.drain(..).enumerate() {
        largest = largest.max(p_values[index] * (m - rank) as f64).min(1.0);
        corrected[index] = largest;
    }
    corrected
}

/// q-values: of the tests whose q-value is at most `x`, a share of `x` is expected to be luck. In the order given.
///
/// **Source**: Benjamini and Hochberg 1995: the k-th smallest of m times `m / k`, made monotone from above.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let m = p_values.len();
    let mut corrected = vec![0.0; m];
    let mut smallest = 1.0f64;
    for (rank, index) in ascending(p_values).into_iter().enumerate().rev() {
        smallest = smallest.min(p_values[index] * m as f64 / (rank + 1) as f64);
        corrected[index] = smallest;
    }
    corrected
}

fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}

/// 95 % interval of a share of `n` items; it stays within 0 and 1 and has a width even where all items are right.
///
/// **Source**: Wilson 1927, the score interval.
pub fn wilson95(share: f64, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (z2, n) = (1.959_963_984_540_054_f64.powi(2), n as f64);
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = (z2 * (share * (1.0 - share) / n + z2 / (4.0 * n * n))).sqrt() / (1.0 + z2 / n);
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// One-sided exact test of a group against the rest: how likely the group has `right` of its `n` items right, or fewer,
/// if the `all_right` of `all` items fell to it by chance.
///
/// **Source**: Fisher's exact test (the lower tail of the hypergeometric distribution).
pub fn fisher_lower(right: usize, n: usize, all_right: usize, all: usize) -> f64 {
    debug_assert!(right <= n && n <= all && right <= all_right && all_right <= all, "a group is a part of the whole");
    let mut ln_factorial = vec![0.0f64; all + 1];
    for k in 1..=all {
        ln_factorial[k] = ln_factorial[k - 1] + (k as f64).ln();
    }
    let ln_choose = |n: usize, k: usize| ln_factorial[n] - ln_factorial[k] - ln_factorial[n - k];
    let (least, whole) = ((n + all_right).saturating_sub(all), ln_choose(all, n));
    let term = |k: usize| (ln_choose(all_right, k) + ln_choose(all - all_right, n - k) - whole).exp();
    (least..=right).map(term).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::{evaluate::shared_fixtures, seed};

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-10 * b.abs()
    }

    #[test]
    fn the_exact_test_equals_the_binomial_test() {
        // Exact values: Python's fractions, min(1, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n), which is
        // what scipy.stats.binomtest(b, b + c, 0.5).pvalue computes.
        for (b, c, p) in [
            (0, 0, 1.0),
            (1, 5, 0.21875),
            (10, 10, 1.0),
            (3, 18, 0.0014896392822265625),
            (40, 65, 0.01874091540825805),
            (5, 300, 6.639561688344555e-82),
            (700, 900, 6.319484959450139e-07),
        ] {
            assert!(close(mcnemar_exact(b, c), p), "{b} {c}: {} instead of {p}", mcnemar_exact(b, c));
            assert!(close(mcnemar_exact(c, b), p));
        }
    }

    #[test]
    fn disagreements_that_balance_are_worth_nothing() {
        for (b, c) in [(0, 0), (1, 2), (3, 2), (7, 7), (400, 400)] {
            assert_eq!(mcnemar_exact(b, c), 1.0, "{b} {c}");
        }
    }

    #[test]
    fn agreements_do_not_matter_to_the_paired_test() {
        let base = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let tuned = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0];
        assert!(close(paired_p_value(&base, &tuned), 0.21875));
        assert!(close(paired_p_value(&base[..6], &tuned[..6]), 0.21875));
    }

    #[test]
    fn corrections_for_several_tests_are_those_of_r_s_p_adjust() {
        let p = [0.01, 0.04, 0.03, 0.005, 0.9];
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.9), "holm") and "BH", worked out by hand from the formulas.
        let holm_expected = [0.04, 0.09, 0.09, 0.025, 0.9];
        let bh_expected = [0.025, 0.05, 0.05, 0.025, 0.9];
        assert!(holm(&p).iter().zip(holm_expected).all(|(&a, b)| close(a, b)), "{:?}", holm(&p));
        assert!(benjamini_hochberg(&p).iter().zip(bh_expected).all(|(&a, b)| close(a, b)));
        assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty() && benjamini_hochberg(&[]).is_empty());
    }

    #[test]
    fn an_interval_of_a_share_stays_within_bounds() {
        // Wilson's interval for 8 of 10, as every table has it.
        let [low, high] = wilson95(0.8, 10);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        let [low, high] = wilson95(1.0, 20);
        assert!(low < 0.85 && high == 1.0);
        assert_eq!(wilson95(0.0, 0), [0.0, 1.0]);
    }

    #[test]
    fn a_group_s_test_is_the_lower_tail_of_the_hypergeometric() {
        // The lady who tastes tea: of 4 and 4 cups, 1 or fewer of her 4 right: (1 + 16) / 70.
        assert!(close(fisher_lower(1, 4, 4, 8), 17.0 / 70.0));
        assert!(close(fisher_lower(4, 4, 4, 8), 1.0));
        // Pigeonhole: 3 of 4 must be right at least.
        assert!(close(fisher_lower(3, 4, 7, 8), 0.5));
    }

    #[test]
    fn standard_error_is_that_of_a_sample() -> Result<()> {
        let (mean, stderr) = mean_stderr(&[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
        assert!(close(mean, 0.6) && close(stderr.expect("ten values"), 0.163_299_316_185_545_22));
        assert_eq!(mean_stderr(&[1.0]), (1.0, None));
        let Some(golden) = shared_fixtures::golden("scoring.json")? else { return Ok(()) };
        let case = &golden["stderr"]["mean_stderr"];
        let items: Vec<f64> = serde_json::from_value(case["items"].clone())?;
        assert!(close(mean_stderr(&items).1.expect("several values"), case["value"].as_f64().expect("a number")));
        Ok(())
    }

    #[test]
    fn groups_weigh_by_size_and_pool_their_errors() {
        // 0.25 * 100 + 0.5 * 300 = 175 of 400.
        assert!(close(weighted_mean(&[0.25, 0.5], &[100, 300]), 0.4375));
        // Two halves of one sample pool to its own error: variance 0.25 * 100 / 99 each, over 200 documents.
        let half = (0.25_f64 / 99.0).sqrt();
        let pooled = pooled_stderr(&[half, half], &[100, 100]).expect("enough documents");
        assert!(close(pooled, (0.25_f64 * 100.0 / 99.0 / 200.0).sqrt()), "{pooled}");
        assert_eq!(pooled_stderr(&[0.0], &[1]), None);
    }

    #[test]
    fn the_bootstrap_repeats_by_seed_and_covers_the_difference() {
        let base: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        let tuned: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let interval = |id: &str| {
            paired_bootstrap(&base, &tuned, 2000, &mut seed::stream(1, "evaluate", id)).expect("there are items")
        };
        let [low, high] = interval("a");
        assert_eq!(interval("a"), [low, high]);
        // The difference is 0.25 with standard deviation sqrt(0.25 * 0.75 / 200) = 0.0306, so 0.25 +- 0.060.
        assert!((low - 0.19).abs() < 0.015 && (high - 0.31).abs() < 0.015, "{low} {high}");
        assert_eq!(paired_bootstrap(&[], &[], 10, &mut seed::stream(1, "evaluate", "a")), None);
    }
}
