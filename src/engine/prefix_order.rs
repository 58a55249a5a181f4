//! Puts requests into an order in which equal beginnings meet.
//!
//! A cache of limited size helps only while the next request with the same beginning comes soon. Offline all requests
//! are known, so a window of them is pulled and arranged as a walk through the tree of their beginnings. Branches are
//! taken in the order of their first request: what is in a good order already stays as it is, and the request that came
//! first is served first, so that results written in order are not held up more than the tree demands.

use std::collections::VecDeque;

use super::Incoming;
use crate::language_model::Prompt;

/// Requests pulled ahead of the seats at most. What they hold is text; a kill can cost as many answers that wait for
/// the one before them.
const MAX_REQUESTS: usize = 1024;
/// Bytes of their prompts at most, so that long documents do not fill the memory.
const MAX_BYTES: usize = 16 << 20;
/// A common beginning in bytes that is worth a change of order: about a block of the cache.
const MIN_SHARED_BYTES: usize = 64;

/// An iterator over the same requests in another order.
pub(super) struct InPrefixOrder<'a> {
    source: std::iter::Fuse<&'a mut dyn Iterator<Item = Incoming>>,
    window: VecDeque<Incoming>,
    is_enabled: bool,
}

impl<'a> InPrefixOrder<'a> {
    /// `is_enabled`: otherwise requests pass one by one as they come.
    pub(super) fn new(source: &'a mut dyn Iterator<Item = Incoming>, is_enabled: bool) -> Self {
        Self { source: source.fuse(), window: VecDeque::new(), is_enabled }
    }

    fn refill(&mut self) {
        let mut keyed = Vec::new();
        let mut num_bytes = 0;
        while keyed.len() < MAX_REQUESTS
            && num_bytes < MAX_BYTES
            && let Some(incoming) = self.source.next()
        {
            let key = beginning(&incoming);
            num_bytes += key.len();
            keyed.push((key, Some(incoming)));
        }
        let keys: Vec<&[u8]> = keyed.iter().map(|(key, _)| key.as_slice()).collect();
        let order = order(&keys);
        self.window.extend(order.into_iter().filter_map(|index| keyed[index].1.take()));
    }
}

impl Iterator for InPrefixOrder<'_> {
    type Item = Incoming;

    fn next(&mut self) -> Option<Incoming> {
        if !self.is_enabled {
            return self.source.next();
        }
        if self.window.is_empty() {
            self.refill();
        }
        self.window.pop_front()
    }
}

/// What two requests are compared by: bytes that share a beginning where the prompts do.
fn beginning(incoming: &Incoming) -> Vec<u8> {
    let ids = |ids: &[u32]| ids.iter().flat_map(|id| id.to_be_bytes()).collect();
    match incoming {
        // Continuations too, so that those that begin alike follow one another.
        Incoming::Score(request) => {
            ids(&[&request.context_token_ids[..], &request.continuation_token_ids[..]].concat())
        }
        Incoming::Generate { request, .. } => match &request.prompt {
            Prompt::Text(text) => text.clone().into_bytes(),
            Prompt::TokenIds(token_ids) => ids(token_ids),
            Prompt::Messages(messages) => {
                let parts = messages.iter().flat_map(|message| [&message.role, "\n", &message.content, "\n"]);
                parts.collect::<String>().into_bytes()
            }
        },
    }
}

/// The places of `keys` in the order of a walk through their tree.
fn order(keys: &[&[u8]]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..keys.len()).collect();
    sorted.sort_by_key(|&place| keys[place]);
    let shared: Vec<usize> = sorted
        .windows(2)
        .map(|pair| {
            let both = keys[pair[0]].iter().zip(keys[pair[1]]);
            let length = both.take_while(|(one, other)| one == other).count();
            if length < MIN_SHARED_BYTES { 0 } else { length }
        })
        .collect();
    let mut order = Vec::with_capacity(keys.len());
    // Spans of `sorted` that are still to be walked, the next one last.
    let mut spans: Vec<_> = std::iter::once(0..sorted.len()).collect();
    while let Some(span) = spans.pop() {
        let inner = &shared[span.start..(span.end.max(1) - 1).max(span.start)];
        let Some(least) = inner.iter().min() else {
            order.extend(span.map(|at| sorted[at]));
            continue;
        };
        // The branches of the node at which the span's common beginning ends.
        let mut branches = Vec::new();
        let mut start = span.start;
        for (length, at) in inner.iter().zip(span.start + 1..) {
            if length == least {
                branches.push(start..at);
                start = at;
            }
        }
        branches.push(start..span.end);
        branches.sort_by_cached_key(|branch| std::cmp::Reverse(sorted[branch.clone()].iter().min().copied()));
        spans.extend(branches);
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::language_model::{Request, SamplingParams};

    fn order_of(texts: &[String]) -> Vec<usize> {
        order(&texts.iter().map(String::as_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn interleaved_beginnings_meet_and_the_first_to_come_is_first() {
        let text = |course: char, question: usize| format!("{}{question}", course.to_string().repeat(100));
        let interleaved: Vec<String> = (0..9).map(|which| text(['c', 'a', 'b'][which % 3], which)).collect();
        assert_eq!(order_of(&interleaved), [0, 3, 6, 1, 4, 7, 2, 5, 8]);
        let grouped: Vec<String> = (0..9).map(|which| text(['c', 'a', 'b'][which / 3], which)).collect();
        assert_eq!(order_of(&grouped), (0..9).collect::<Vec<_>>(), "a good order stays");
    }

    #[test]
    fn branches_of_branches_meet_too() {
        let text = |parts: [char; 2]| parts.map(|part| part.to_string().repeat(80)).concat();
        let texts = [['a', 'x'], ['b', 'x'], ['a', 'y'], ['b', 'y'], ['a', 'x'], ['a', 'y']].map(text);
        assert_eq!(order_of(&texts), [0, 4, 2, 5, 1, 3]);
    }

    #[test]
    fn a_short_common_beginning_changes_nothing() {
        let texts = ["You are b", "You are a", "Name it", "You are b"].map(String::from);
        assert_eq!(order_of(&texts), [0, 1, 2, 3]);
        assert!(order_of(&[]).is_empty());
    }

    #[test]
    fn no_more_than_a_window_is_pulled() {
        let num_pulled = std::cell::Cell::new(0);
        let mut source = (0..3 * MAX_REQUESTS).map(|id| {
            num_pulled.set(num_pulled.get() + 1);
            let prompt = Prompt::TokenIds(vec![id as u32]);
            Incoming::Generate {
                request: Request { id: id.to_string(), prompt, sampling: SamplingParams::default() },
                is_streamed: false,
            }
        });
        let mut ordered = InPrefixOrder::new(&mut source, true);
        for num_taken in 0..3 * MAX_REQUESTS {
            assert!(num_pulled.get() < num_taken + 1 + MAX_REQUESTS);
            assert!(ordered.next().is_some());
        }
        assert!(ordered.next().is_none());
    }

    proptest! {
        #[test]
        fn every_request_comes_once_and_neighbours_share_what_the_sorted_ones_share(
            places in prop::collection::vec((0usize..3, 0usize..3, 0usize..3), 0..40),
        ) {
            let part = |which: usize| ["a", "b", "c"][which].repeat(70);
            let texts: Vec<String> = places.iter().map(|&(a, b, c)| part(a) + &part(b) + &part(c)).collect();
            let order = order_of(&texts);
            let mut once = order.clone();
            once.sort_unstable();
            prop_assert_eq!(once, (0..texts.len()).collect::<Vec<_>>());
            let shared = |places: &[usize]| -> usize {
                let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
                places.windows(2).map(|pair| common(&texts[pair[0]], &texts[pair[1]])).sum()
            };
            let mut sorted: Vec<usize> = (0..texts.len()).collect();
            sorted.sort_by_key(|&place| &texts[place]);
            prop_assert_eq!(shared(&order), shared(&sorted));
        }
    }
}
