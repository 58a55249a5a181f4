//! Remembers the last few compiled constraints: a stage sends thousands of requests with one schema.

use std::sync::Arc;

use super::{
    generation::Vocabulary,
    grammar::{Grammar, GrammarError, GrammarFactory},
};
use crate::language_model::Constraint;

/// More than a stage has schemas at once; few enough to search in line.
const CAPACITY: usize = 16;

/// Compiled constraints, the one used last at the end. The vocabulary's trie is built when the first one comes.
#[derive(Default)]
pub struct GrammarCache {
    factory: Option<GrammarFactory>,
    recent: Vec<(Constraint, Arc<Grammar>)>,
}

impl GrammarCache {
    /// The compiled form of a constraint.
    pub fn compile(&mut self, constraint: &Constraint, vocabulary: &Vocabulary) -> Result<Arc<Grammar>, GrammarError> {
        if let Some(place) = self.recent.iter().position(|(known, _)| known == constraint) {
            self.recent[place..].rotate_left(1);
        } else {
            let factory = match &mut self.factory {
                Some(factory) => factory,
                empty => empty.insert(GrammarFactory::new(&vocabulary.tokenizer, &vocabulary.eos_token_ids)?),
            };
            let compiled = Arc::new(Grammar::compile(constraint, factory)?);
            if self.recent.len() == CAPACITY {
                self.recent.remove(0);
            }
            self.recent.push((constraint.clone(), compiled));
        }
        let (_, compiled) = self.recent.last().expect("found or pushed just above");
        Ok(Arc::clone(compiled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::toy;

    #[test]
    fn a_constraint_is_compiled_once_and_the_oldest_forgotten() {
        let vocabulary = Vocabulary { tokenizer: toy::byte_level(None, "<|endoftext|>"), eos_token_ids: vec![259] };
        let mut cache = GrammarCache::default();
        let choice = |which: usize| Constraint::Choice(vec![which.to_string()]);
        let first = cache.compile(&choice(0), &vocabulary).unwrap();
        for which in 1..CAPACITY {
            cache.compile(&choice(which), &vocabulary).unwrap();
        }
        assert!(Arc::ptr_eq(&first, &cache.compile(&choice(0), &vocabulary).unwrap()));
        cache.compile(&choice(CAPACITY), &vocabulary).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.compile(&choice(0), &vocabulary).unwrap()), "used last but one");
        assert_eq!(cache.recent.len(), CAPACITY);
        assert!(cache.recent.iter().all(|(known, _)| *known != choice(1)), "the oldest went");
        assert!(cache.compile(&Constraint::Regex("(".into()), &vocabulary).is_err());
    }
}
