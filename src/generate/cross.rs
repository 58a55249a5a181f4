//! Questions that join two subjects (`generate.cross_subject_ratio`, `cross_discipline_ratio`): one class session of each of two
//! syllabi, with two to five key concepts of both, counted and drawn as the paper's strategy 2 within one syllabus. The paper
//! never crosses subjects (section 2.4); off by default.
//!
//! A pair of syllabi could be drawn from either side. Of its pairs of sessions `(a, b)` those with an even sum belong to the syllabus of the
//! smaller id and the others to the other one, so each combination has one owner and comes at most once.

use rand::Rng;

use super::combos::{distinct_ranks, spread_evenly, two_session_at, two_session_count};

/// A session of another syllabus beside one of one's own. Concepts are indices into their session, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CrossCombination {
    /// Which of the partners.
    pub partner: usize,
    /// The own session and the partner's.
    pub sessions: (usize, usize),
    /// Key concepts of each.
    pub key_concepts: (Vec<usize>, Vec<usize>),
}

/// The combinations of two syllabi that one of them owns.
struct Owned<'a> {
    own: &'a [usize],
    other: &'a [usize],
    /// Running total over pairs of sessions.
    pairs: Vec<(usize, usize, u128)>,
}

impl<'a> Owned<'a> {
    fn new(own: &'a [usize], other: &'a [usize], is_first: bool) -> Self {
        let mut pairs = Vec::new();
        let mut total = 0;
        for (a, &own) in own.iter().enumerate() {
            for (b, &other) in other.iter().enumerate().filter(|(b, _)| (a + b).is_multiple_of(2) == is_first) {
                total += two_session_count(own, other);
                pairs.push((a, b, total));
            }
        }
        Self { own, other, pairs }
    }

    fn count(&self) -> u128 {
        self.pairs.last().map_or(0, |&(_, _, total)| total)
    }

    fn at(&self, partner: usize, rank: u128) -> CrossCombination {
        let index = self.pairs.partition_point(|&(_, _, total)| total <= rank);
        let (a, b, _) = self.pairs[index];
        let rank = rank - if index == 0 { 0 } else { self.pairs[index - 1].2 };
        let key_concepts = two_session_at(self.own[a], self.other[b], rank);
        CrossCombination { partner, sessions: (a, b), key_concepts }
    }
}

/// Draws up to `count` combinations of a syllabus with `num_partners` others, no two the same, as evenly over partners as
/// there are any. `partner` gives the numbers of key concepts of a partner's sessions, and whether the own syllabus is the first of the
/// two.
pub fn draw<'a>(
    own: &[usize],
    num_partners: usize,
    partner: impl Fn(usize) -> (&'a [usize], bool),
    count: usize,
    rng: &mut impl Rng,
) -> Vec<CrossCombination> {
    // As many partners as questions are enough, so that a syllabus does not look at thousands of others.
    let chosen = distinct_ranks(num_partners as u128, (num_partners as u128).min(count as u128), rng);
    let owned: Vec<(usize, Owned)> = chosen
        .into_iter()
        .map(|place| {
            let place = place as usize;
            let (other, is_first) = partner(place);
            (place, Owned::new(own, other, is_first))
        })
        .collect();
    let capacities: Vec<u128> = owned.iter().map(|(_, owned)| owned.count()).collect();
    let shares = spread_evenly(count, &capacities);
    let mut drawn = Vec::new();
    for ((place, owned), share) in owned.iter().zip(shares) {
        let ranks = distinct_ranks(owned.count(), share as u128, rng);
        drawn.extend(ranks.into_iter().map(|rank| owned.at(*place, rank)));
    }
    drawn
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::seed;

    #[test]
    fn each_combination_of_two_syllabi_has_one_owner() {
        let (a, b) = (vec![3, 1, 2], vec![2, 4]);
        let (first, second) = (Owned::new(&a, &b, true), Owned::new(&b, &a, false));
        let all: u128 = a.iter().flat_map(|&m1| b.iter().map(move |&m2| two_session_count(m1, m2))).sum();
        assert_eq!(first.count() + second.count(), all);
        let mut seen = HashSet::new();
        for rank in 0..first.count() {
            let CrossCombination { sessions, key_concepts, .. } = first.at(0, rank);
            assert!(seen.insert((sessions, key_concepts)));
        }
        for rank in 0..second.count() {
            let CrossCombination { sessions, key_concepts, .. } = second.at(0, rank);
            assert!(seen.insert(((sessions.1, sessions.0), (key_concepts.1, key_concepts.0))));
        }
        assert_eq!(seen.len() as u128, all);
        for ((s, t), (one, other)) in seen {
            assert!((2..=5).contains(&(one.len() + other.len())) && !one.is_empty() && !other.is_empty());
            assert!(one.iter().all(|&concept| concept < a[s]) && other.iter().all(|&concept| concept < b[t]));
        }
    }

    #[test]
    fn partners_share_evenly_and_nothing_is_drawn_twice() {
        let own = [5, 5, 5];
        let others = [vec![5, 5], vec![1], vec![4, 4, 4], vec![]];
        let drawn = draw(&own, 4, |place| (&others[place], place % 2 == 0), 100, &mut seed::stream(1, "cross", "x"));
        let of = |place| drawn.iter().filter(|combination| combination.partner == place).count();
        // The second has sessions (1, 0) alone: 5 + 10 + 10 + 5 combinations of one of its one concept.
        assert_eq!((of(0), of(1), of(2), of(3)), (35, 30, 35, 0));
        assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 100);
        assert!(draw(&own, 0, |_| (&[][..], true), 7, &mut seed::stream(1, "cross", "y")).is_empty());
    }
}
