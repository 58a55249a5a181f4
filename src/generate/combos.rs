//! Which class sessions and key concepts a question is about (section 2.4).
//!
//! *Strategy 1* takes one session and 1 to 5 of its `m` key concepts; *strategy 2* takes two sessions and 2 to 5 key
//! concepts, at least one of each. Both are counted exactly, every combination has a rank, and ranks are drawn without
//! replacement: each combination of a strategy is equally likely and comes at most once per syllabus. So a session with
//! more concepts is asked about more often, and sets of five are the commonest, as their number is the largest.

use std::collections::HashSet;

use rand::Rng;

/// Most key concepts of one question.
pub const MAX_CONCEPTS: usize = 5;

/// What one question is about. Indices point into the syllabus, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Combination {
    /// Indices of one or two class sessions: the strategy is their number.
    pub class_sessions: Vec<usize>,
    /// Pairs of a class session's index and the index of a key concept in it.
    pub key_concepts: Vec<(usize, usize)>,
}

impl Combination {
    /// 1 or 2.
    pub fn strategy(&self) -> usize {
        self.class_sessions.len()
    }
}

/// `C(n, k)`; exact for the `k <= 5` that occur here.
pub fn binomial(n: u128, k: u128) -> u128 {
    if k > n {
        return 0;
    }
    (0..k).fold(1, |product, i| product * (n - i) / (i + 1))
}

/// `N1(m)`: the sets of 1 to 5 of `m` concepts.
pub fn single_session_count(m: usize) -> u128 {
    (1..=MAX_CONCEPTS).map(|i| binomial(m as u128, i as u128)).sum()
}

/// `N2(m1, m2)`: the sets of 2 to 5 concepts of two sessions that use both.
pub fn two_session_count(m1: usize, m2: usize) -> u128 {
    (2..=MAX_CONCEPTS).map(|i| mixed_count(m1, m2, i)).sum()
}

/// Sets of `i` concepts of two sessions that use both.
fn mixed_count(m1: usize, m2: usize, i: usize) -> u128 {
    let (m1, m2, i) = (m1 as u128, m2 as u128, i as u128);
    binomial(m1 + m2, i) - binomial(m1, i) - binomial(m2, i)
}

/// The combinations of one syllabus: `concepts[s]` is the number of key concepts of session `s`.
#[derive(Debug, Clone)]
pub struct Combinations {
    concepts: Vec<usize>,
    /// Running total of `N1` over sessions.
    single: Vec<u128>,
    /// Running total of `N2` over pairs of sessions `(a, b)`, `a < b`, in lexicographic order.
    pairs: Vec<(usize, usize, u128)>,
}

impl Combinations {
    /// Counts the combinations of a syllabus.
    pub fn new(concepts: Vec<usize>) -> Self {
        let mut total = 0;
        let single = concepts
            .iter()
            .map(|&m| {
                total += single_session_count(m);
                total
            })
            .collect();
        let mut total = 0;
        let mut pairs = Vec::new();
        for a in 0..concepts.len() {
            for b in a + 1..concepts.len() {
                total += two_session_count(concepts[a], concepts[b]);
                pairs.push((a, b, total));
            }
        }
        Self { concepts, single, pairs }
    }

    /// How many combinations a strategy (1 or 2) has.
    pub fn count(&self, strategy: usize) -> u128 {
        match strategy {
            1 => self.single.last().copied().unwrap_or(0),
            _ => self.pairs.last().map_or(0, |&(_, _, total)| total),
        }
    }

    /// The combination of a strategy at a rank below its count.
    pub fn at(&self, strategy: usize, rank: u128) -> Combination {
        debug_assert!(rank < self.count(strategy), "rank {rank} of strategy {strategy} is out of range");
        if strategy == 1 { self.single_at(rank) } else { self.pair_at(rank) }
    }

    fn single_at(&self, rank: u128) -> Combination {
        let session = self.single.partition_point(|&total| total <= rank);
        let mut rank = rank - if session == 0 { 0 } else { self.single[session - 1] };
        let m = self.concepts[session];
        for size in 1..=MAX_CONCEPTS {
            let count = binomial(m as u128, size as u128);
            if rank < count {
                let chosen = subset_at(m, size, rank);
                return Combination {
                    class_sessions: vec![session],
                    key_concepts: chosen.into_iter().map(|concept| (session, concept)).collect(),
                };
            }
            rank -= count;
        }
        unreachable!("the counts of all sizes add up to N1")
    }

    fn pair_at(&self, rank: u128) -> Combination {
        let index = self.pairs.partition_point(|&(_, _, total)| total <= rank);
        let (a, b, _) = self.pairs[index];
        let rank = rank - if index == 0 { 0 } else { self.pairs[index - 1].2 };
        let (first, second) = two_session_at(self.concepts[a], self.concepts[b], rank);
        let first = first.into_iter().map(|concept| (a, concept));
        let second = second.into_iter().map(|concept| (b, concept));
        Combination { class_sessions: vec![a, b], key_concepts: first.chain(second).collect() }
    }

    /// Draws `count` combinations, a share of `two_session_ratio` of them (rounded at random, so that it holds on
    /// average even for one question per syllabus) by strategy 2. Where a strategy has too few combinations the other
    /// one fills up; never more than there are.
    pub fn draw(&self, count: usize, two_session_ratio: f64, rng: &mut impl Rng) -> Vec<Combination> {
        let (n1, n2) = (self.count(1), self.count(2));
        let count = (count as u128).min(n1 + n2);
        let wanted = count as f64 * two_session_ratio;
        let rounded = wanted.floor() as u128 + u128::from(rng.random::<f64>() < wanted.fract());
        let two = rounded.min(count).min(n2).max(count.saturating_sub(n1));
        let mut drawn = Vec::with_capacity(count as usize);
        for (strategy, take) in [(1, count - two), (2, two)] {
            let ranks = distinct_ranks(self.count(strategy), take, rng);
            drawn.extend(ranks.into_iter().map(|rank| self.at(strategy, rank)));
        }
        drawn
    }
}

/// The concepts of either session in the combination of two sessions at a rank below [`two_session_count`].
pub fn two_session_at(m1: usize, m2: usize, mut rank: u128) -> (Vec<usize>, Vec<usize>) {
    for size in 2..=MAX_CONCEPTS {
        for from_first in 1..size {
            let of_second = binomial(m2 as u128, (size - from_first) as u128);
            let count = binomial(m1 as u128, from_first as u128) * of_second;
            if rank >= count {
                rank -= count;
                continue;
            }
            return (subset_at(m1, from_first, rank / of_second), subset_at(m2, size - from_first, rank % of_second));
        }
    }
    unreachable!("the counts of all sizes and splits add up to N2")
}

/// `take` different numbers below `total`, every subset equally likely (Floyd's algorithm): `take` draws, whatever
/// the total.
pub fn distinct_ranks(total: u128, take: u128, rng: &mut impl Rng) -> Vec<u128> {
    let mut seen = HashSet::new();
    let mut ranks = Vec::new();
    for last in total - take..total {
        let rank = rng.random_range(0..=last);
        let rank = if seen.contains(&rank) { last } else { rank };
        seen.insert(rank);
        ranks.push(rank);
    }
    ranks
}

/// The subset of `size` of the numbers below `n` at `rank` in lexicographic order.
fn subset_at(n: usize, size: usize, mut rank: u128) -> Vec<usize> {
    let mut subset = Vec::with_capacity(size);
    let mut next = 0;
    for left in (0..size).rev() {
        loop {
            let count = binomial((n - next - 1) as u128, left as u128);
            if rank < count {
                break;
            }
            rank -= count;
            next += 1;
        }
        subset.push(next);
        next += 1;
    }
    subset
}

/// Spreads `total` as evenly as the capacities allow: nobody gets more than its capacity, and two that are below
/// theirs differ by at most one; the earlier ones get the extra one.
pub fn spread_evenly(total: usize, capacities: &[u128]) -> Vec<usize> {
    let mut shares = vec![0; capacities.len()];
    let mut by_capacity: Vec<usize> = (0..capacities.len()).collect();
    by_capacity.sort_by_key(|&index| capacities[index]);
    let mut left = total;
    for (position, &index) in by_capacity.iter().enumerate() {
        let even = left / (capacities.len() - position);
        if capacities[index] <= even as u128 {
            shares[index] = capacities[index] as usize;
            left -= shares[index];
            continue;
        }
        // Everybody from here on has room for the even share and one more.
        let mut rest = by_capacity[position..].to_vec();
        rest.sort_unstable();
        let extra = left % rest.len();
        for (order, &index) in rest.iter().enumerate() {
            shares[index] = even + usize::from(order < extra);
        }
        break;
    }
    shares
}

/// Spreads `total` in proportion to the weights as far as the capacities allow, rounded by largest remainders (the
/// earlier of two that are even). Equal weights are spread evenly.
pub fn spread_weighted(total: usize, capacities: &[u128], weights: &[f64]) -> Vec<usize> {
    if weights.windows(2).all(|pair| pair[0] == pair[1]) {
        return spread_evenly(total, capacities);
    }
    let mut shares = vec![0; capacities.len()];
    let mut open: Vec<usize> = (0..capacities.len()).collect();
    let mut left = total;
    loop {
        let whole: f64 = open.iter().map(|&index| weights[index]).sum();
        let quota = |index: usize| left as f64 * weights[index] / whole;
        let (full, rest): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|&&index| capacities[index] as f64 <= quota(index));
        if full.is_empty() {
            let quotas: Vec<f64> = open.iter().map(|&index| quota(index)).collect();
            for (&index, quota) in open.iter().zip(&quotas) {
                shares[index] = quota.floor() as usize;
            }
            let missing = left.saturating_sub(quotas.iter().map(|quota| quota.floor() as usize).sum());
            let mut order: Vec<usize> = (0..open.len()).collect();
            order.sort_by(|&a, &b| quotas[b].fract().total_cmp(&quotas[a].fract()).then(a.cmp(&b)));
            for &place in order.iter().take(missing) {
                shares[open[place]] += 1;
            }
            return shares;
        }
        for index in full {
            shares[index] = capacities[index] as usize;
            left -= shares[index];
        }
        open = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::seed;

    /// Every combination of a syllabus, by trying all subsets.
    fn brute_force(concepts: &[usize], strategy: usize) -> Vec<Combination> {
        let all: Vec<(usize, usize)> = concepts
            .iter()
            .enumerate()
            .flat_map(|(session, &m)| (0..m).map(move |concept| (session, concept)))
            .collect();
        let mut found = Vec::new();
        for mask in 1u32..1 << all.len() {
            let chosen: Vec<_> = (0..all.len()).filter(|bit| mask >> bit & 1 == 1).map(|bit| all[bit]).collect();
            let mut sessions: Vec<_> = chosen.iter().map(|&(session, _)| session).collect();
            sessions.dedup();
            if sessions.len() == strategy && chosen.len() <= MAX_CONCEPTS {
                found.push(Combination { class_sessions: sessions, key_concepts: chosen });
            }
        }
        found.sort();
        found
    }

    #[test]
    fn counts_are_the_paper_s() {
        assert_eq!(single_session_count(5), 31);
        assert_eq!(two_session_count(5, 5), 575);
        let twenty = Combinations::new(vec![5; 20]);
        assert_eq!((twenty.count(1), twenty.count(2)), (620, 109_250));
        assert_eq!((single_session_count(0), two_session_count(0, 5), two_session_count(1, 1)), (0, 0, 1));
    }

    #[test]
    fn ranks_and_combinations_are_one_to_one_and_agree_with_brute_force() {
        for concepts in [vec![1], vec![3], vec![7], vec![2, 3], vec![1, 1, 1], vec![6, 1, 4], vec![2, 0, 3, 4]] {
            let combinations = Combinations::new(concepts.clone());
            for strategy in [1, 2] {
                let mut ranked: Vec<_> =
                    (0..combinations.count(strategy)).map(|rank| combinations.at(strategy, rank)).collect();
                ranked.sort();
                assert_eq!(ranked, brute_force(&concepts, strategy), "{concepts:?} strategy {strategy}");
            }
        }
    }

    #[test]
    fn every_combination_of_a_strategy_is_equally_likely() {
        let combinations = Combinations::new(vec![3, 2, 4]);
        for strategy in [1, 2] {
            let cells = combinations.count(strategy) as usize;
            let draws = 200 * cells;
            let mut counts: BTreeMap<Combination, usize> = BTreeMap::new();
            for i in 0..draws {
                let mut rng = seed::stream(7, "questions", &i.to_string());
                let drawn = combinations.draw(1, (strategy - 1) as f64, &mut rng);
                *counts.entry(drawn[0].clone()).or_default() += 1;
            }
            assert_eq!(counts.len(), cells);
            let chi_square: f64 = counts.values().map(|&seen| (seen as f64 - 200.0).powi(2) / 200.0).sum();
            // Mean k, standard deviation sqrt(2k) for k = cells - 1 degrees of freedom; 4 deviations.
            let freedom = (cells - 1) as f64;
            assert!(chi_square < freedom + 4.0 * (2.0 * freedom).sqrt(), "{chi_square} at {freedom} degrees");
        }
    }

    #[test]
    fn concepts_of_equal_sessions_are_asked_about_equally_often() {
        let (sessions, m) = (6, 5);
        let combinations = Combinations::new(vec![m; sessions]);
        for ratio in [0.0, 0.5, 1.0] {
            let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
            for i in 0..2_000 {
                let mut rng = seed::stream(3, "questions", &i.to_string());
                for combination in combinations.draw(10, ratio, &mut rng) {
                    combination.key_concepts.into_iter().for_each(|concept| *counts.entry(concept).or_default() += 1);
                }
            }
            assert_eq!(counts.len(), sessions * m);
            let expected = counts.values().sum::<usize>() as f64 / counts.len() as f64;
            let chi_square: f64 = counts.values().map(|&seen| (seen as f64 - expected).powi(2) / expected).sum();
            // Concepts of one question are drawn together, so the statistic scatters more than that of single draws, around the
            // same mean of about one per cell. Sessions drawn unevenly by a tenth would give some 200.
            assert!(chi_square < 2.5 * (sessions * m) as f64, "{chi_square} at a ratio of {ratio}");
        }
    }

    #[test]
    fn the_ratio_of_strategies_holds_on_average_even_for_single_draws() {
        let combinations = Combinations::new(vec![5; 10]);
        let two = (0..10_000)
            .filter(|i| {
                let mut rng = seed::stream(1, "questions", &i.to_string());
                combinations.draw(1, 0.3, &mut rng)[0].strategy() == 2
            })
            .count();
        // Standard deviation sqrt(10000 * 0.3 * 0.7) = 46.
        assert!((two as i64 - 3000).abs() < 4 * 46, "{two}");
    }

    proptest! {
        #[test]
        fn no_combination_comes_twice_and_both_strategies_fill_up(
            concepts in prop::collection::vec(0usize..6, 0..6),
            count in 0usize..400,
            ratio in 0.0f64..=1.0,
            id in any::<u64>(),
        ) {
            let combinations = Combinations::new(concepts.clone());
            let drawn = combinations.draw(count, ratio, &mut seed::stream(0, "questions", &id.to_string()));
            let available = combinations.count(1) + combinations.count(2);
            prop_assert_eq!(drawn.len() as u128, available.min(count as u128));
            prop_assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
            for combination in &drawn {
                prop_assert!((combination.strategy()..=MAX_CONCEPTS).contains(&combination.key_concepts.len()));
                prop_assert!(combination.key_concepts.is_sorted());
                for &(session, concept) in &combination.key_concepts {
                    prop_assert!(concept < concepts[session] && combination.class_sessions.contains(&session));
                }
                for session in &combination.class_sessions {
                    prop_assert!(combination.key_concepts.iter().any(|(of, _)| of == session));
                }
            }
        }

        #[test]
        fn weighted_spreading_keeps_the_total_the_capacities_and_the_proportions(
            total in 0usize..2000,
            groups in prop::collection::vec((0u128..300, 1u32..20), 0..20),
        ) {
            let (capacities, weights): (Vec<u128>, Vec<f64>) =
                groups.iter().map(|&(capacity, weight)| (capacity, f64::from(weight))).unzip();
            let shares = spread_weighted(total, &capacities, &weights);
            let available: u128 = capacities.iter().sum();
            prop_assert_eq!(shares.iter().sum::<usize>() as u128, available.min(total as u128));
            prop_assert!(shares.iter().zip(&capacities).all(|(share, capacity)| *share as u128 <= *capacity));
            // Whoever is below capacity has its proportion of anybody's share, but for the rounding.
            for i in (0..shares.len()).filter(|&i| (shares[i] as u128) < capacities[i]) {
                for j in 0..shares.len() {
                    prop_assert!((shares[i] as f64 + 1.0) / weights[i] >= (shares[j] as f64 - 1.0) / weights[j] - 1e-9);
                }
            }
        }

        #[test]
        fn spreading_keeps_the_total_the_capacities_and_evenness(
            total in 0usize..2000,
            capacities in prop::collection::vec(0u128..300, 0..20),
        ) {
            let shares = spread_evenly(total, &capacities);
            let available: u128 = capacities.iter().sum();
            prop_assert_eq!(shares.iter().sum::<usize>() as u128, available.min(total as u128));
            let below: Vec<usize> =
                (0..shares.len()).filter(|&i| (shares[i] as u128) < capacities[i]).map(|i| shares[i]).collect();
            let least = below.iter().min().copied().unwrap_or(usize::MAX);
            for (share, capacity) in shares.iter().zip(&capacities) {
                prop_assert!(*share as u128 <= *capacity && (*share <= least.saturating_add(1)));
            }
            if let Some(most) = below.iter().max() {
                prop_assert!(most - least <= 1);
            }
        }
    }
}
