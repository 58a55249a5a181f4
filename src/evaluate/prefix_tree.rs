//! How many tokens a model has to read for a set of inputs if it reads every common beginning once.
//!
//! The least work for a task is the number of nodes in the tree of its inputs, one token a node. Chains without a
//! branch are kept as one edge, so the memory is that of the distinct tokens. Of many tokens only the last input is kept:
//! inputs that share a beginning come one after another, all but those that share no more than what all share.

use std::ops::Range;

/// Tokens that are kept at most.
const MAX_TOKENS: usize = 1 << 20;

/// A tree of token sequences.
pub struct PrefixTree {
    tokens: Vec<u32>,
    nodes: Vec<Node>,
    /// Tokens that were counted and forgotten.
    forgotten: usize,
    max_tokens: usize,
}

/// What follows the end of an edge. Children begin with different tokens and form a list, the youngest first: memory of its
/// own for every node would lie scattered among what lives shorter.
#[derive(Clone, Copy)]
struct Node {
    /// The edge that leads here, as a part of `tokens`.
    start: u32,
    end: u32,
    first_child: u32,
    next_sibling: u32,
}

/// No node.
const NONE: u32 = u32::MAX;

impl Node {
    fn leaf(edge: Range<usize>) -> Self {
        // Never more than `MAX_TOKENS` and one input.
        Self { start: edge.start as u32, end: edge.end as u32, first_child: NONE, next_sibling: NONE }
    }
}

impl PrefixTree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::holding(MAX_TOKENS)
    }

    fn holding(max_tokens: usize) -> Self {
        Self { tokens: Vec::new(), nodes: vec![Node::leaf(0..0)], forgotten: 0, max_tokens }
    }

    /// Distinct non-empty beginnings of all inputs so far.
    pub fn len(&self) -> usize {
        self.forgotten + self.tokens.len()
    }

    /// Adds an input.
    pub fn insert(&mut self, input: &[u32]) {
        self.grow(input);
        if self.tokens.len() > self.max_tokens.max(input.len()) {
            self.forgotten += self.tokens.len() - input.len();
            self.tokens.clear();
            self.nodes.truncate(1);
            self.nodes[0] = Node::leaf(0..0);
            self.grow(input);
        }
    }

    fn grow(&mut self, input: &[u32]) {
        let (mut at, mut rest) = (0, input);
        while let Some(&first) = rest.first() {
            // Documents come one after another, so what matches is mostly the last.
            let mut child = self.nodes[at].first_child;
            while child != NONE && self.edge(child as usize)[0] != first {
                child = self.nodes[child as usize].next_sibling;
            }
            if child == NONE {
                let start = self.tokens.len();
                self.tokens.extend_from_slice(rest);
                return self.add_child(at, Node::leaf(start..self.tokens.len()));
            }
            let child = child as usize;
            let common = self.edge(child).iter().zip(rest).take_while(|(one, other)| one == other).count();
            rest = &rest[common..];
            if common < self.edge(child).len() && !rest.is_empty() {
                self.split(child, common);
            }
            at = child;
        }
    }

    /// Ends a node's edge after `length` tokens; what followed becomes its only child.
    fn split(&mut self, node: usize, length: usize) {
        let whole = self.nodes[node];
        let middle = whole.start + length as u32;
        (self.nodes[node].end, self.nodes[node].first_child) = (middle, NONE);
        self.add_child(node, Node { start: middle, ..whole });
    }

    fn add_child(&mut self, node: usize, child: Node) {
        let number = self.nodes.len() as u32;
        let next_sibling = std::mem::replace(&mut self.nodes[node].first_child, number);
        self.nodes.push(Node { next_sibling, ..child });
    }

    fn edge(&self, node: usize) -> &[u32] {
        let Node { start, end, .. } = self.nodes[node];
        &self.tokens[start as usize..end as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_counts_distinct_beginnings(inputs in prop::collection::vec(prop::collection::vec(0u32..3, 0..8), 0..30)) {
            let mut tree = PrefixTree::new();
            let mut beginnings = HashSet::new();
            for input in &inputs {
                tree.insert(input);
                beginnings.extend((1..=input.len()).map(|length| &input[..length]));
            }
            prop_assert_eq!(tree.len(), beginnings.len());
        }

        #[test]
        fn what_is_forgotten_was_counted(
            shared in prop::collection::vec(0u32..3, 0..6),
            mut own in prop::collection::vec(prop::collection::vec(0u32..9, 1..8), 1..30),
            max_tokens in 1usize..40,
        ) {
            // Sorted, so that what shares more than all do is side by side.
            own.sort();
            let (mut whole, mut small) = (PrefixTree::new(), PrefixTree::holding(max_tokens));
            for own in own {
                let input = [&shared[..], &own].concat();
                whole.insert(&input);
                small.insert(&input);
                prop_assert!(small.tokens.len() <= max_tokens.max(input.len()));
            }
            prop_assert_eq!(small.len(), whole.len());
        }
    }
}
