//! Remembers the last few compiled constraints: a stage sends thousands of requests with one schema.
//!
//! May be shared between threads: a server compiles what it was sent before the engine asks for it, since a schema of a
//! megabyte takes seconds and every running request would wait for them.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    generation::Vocabulary,
    grammar::{Grammar, GrammarError, GrammarFactory},
};
use crate::language_model::Constraint;

/// More than a stage has schemas at once; few enough to search in line.
const CAPACITY: usize = 16;

/// Compiled constraints. The vocabulary's trie is built when the first one comes.
#[derive(Default)]
pub struct GrammarCache {
    factory: Mutex<Option<Arc<GrammarFactory>>>,
    /// The one used last at the end.
    recent: Mutex<Vec<(Constraint, Arc<Grammar>)>>,
}

impl GrammarCache {
    /// The compiled form of a constraint. Others can be asked for while this one is compiled.
    pub fn compile(&self, constraint: &Constraint, vocabulary: &Vocabulary) -> Result<Arc<Grammar>, GrammarError> {
        if let Some(known) = self.recall(constraint) {
            return Ok(known);
        }
        let compiled = Arc::new(Grammar::compile(constraint, &*self.factory(vocabulary)?)?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have compiled it meanwhile; one of the two is as good as the other.
        if !recent.iter().any(|(known, _)| known == constraint) {
            if recent.len() == CAPACITY {
                recent.remove(0);
            }
            recent.push((constraint.clone(), Arc::clone(&compiled)));
        }
        Ok(compiled)
    }

    /// A constraint that was compiled before.
    fn recall(&self, constraint: &Constraint) -> Option<Arc<Grammar>> {
        // A thread that died here has left a list of whole entries.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let place = recent.iter().position(|(known, _)| known == constraint)?;
        recent[place..].rotate_left(1);
        recent.last().map(|(_, compiled)| Arc::clone(compiled))
    }

    fn factory(&self, vocabulary: &Vocabulary) -> Result<Arc<GrammarFactory>, GrammarError> {
        let mut factory = self.factory.lock().unwrap_or_else(PoisonError::into_inner);
        let factory = match &mut *factory {
            Some(factory) => factory,
            empty => empty.insert(Arc::new(GrammarFactory::new(&vocabulary.tokenizer, &vocabulary.eos_token_ids)?)),
        };
        Ok(Arc::clone(factory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::toy;

    #[test]
    fn a_constraint_is_compiled_once_and_the_oldest_forgotten() {
        let vocabulary = Vocabulary { tokenizer: toy::byte_level(None, "<|endoftext|>"), eos_token_ids: vec![259] };
        let cache = GrammarCache::default();
        let choice = |which: usize| Constraint::Choice(vec![which.to_string()]);
        let first = cache.compile(&choice(0), &vocabulary).unwrap();
        for which in 1..CAPACITY {
            cache.compile(&choice(which), &vocabulary).unwrap();
        }
        assert!(Arc::ptr_eq(&first, &cache.compile(&choice(0), &vocabulary).unwrap()));
        cache.compile(&choice(CAPACITY), &vocabulary).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.compile(&choice(0), &vocabulary).unwrap()), "used last but one");
        let recent = cache.recent.lock().unwrap();
        assert_eq!(recent.len(), CAPACITY);
        assert!(recent.iter().all(|(known, _)| *known != choice(1)), "the oldest went");
        drop(recent);
        assert!(cache.compile(&Constraint::Regex("(".into()), &vocabulary).is_err());
    }
}
