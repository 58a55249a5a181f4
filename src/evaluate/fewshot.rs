//! Which examples stand before a question: Python's `random.Random(1234).sample`, number for number.
//!
//! lm-evaluation-harness draws examples anew for every document from one generator per task. Equal prompts, and so
//! comparable scores, need the very same draws: MT19937 with Python's seeding and its rejection sampling.

use std::collections::HashSet;

use super::task::Sampler;

/// Seed of the few-shot generator in lm-evaluation-harness.
pub const FEWSHOT_SEED: u32 = 1234;

/// Words of MT19937's state.
const N: usize = 624;
/// Offset of the word that is mixed in.
const M: usize = 397;

/// Python's `random.Random`, as far as sampling needs it.
///
/// **Source**: Matsumoto and Nishimura, "Mersenne Twister", 1998; seeding by array as published by them in 2002.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    /// Next word to hand out; `N` when the state must be renewed first.
    index: usize,
}

impl PythonRandom {
    /// `random.Random(seed)` for a seed of one 32-bit word.
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        // `init_by_array` with a key of one word: the key index is always 0.
        let mut i = 1;
        for _ in 0..N {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_664_525);
            state[i] = (state[i] ^ mixed).wrapping_add(seed);
            i = wrap_state(&mut state, i + 1);
        }
        for _ in 0..N - 1 {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1_566_083_941);
            state[i] = (state[i] ^ mixed).wrapping_sub(i as u32);
            i = wrap_state(&mut state, i + 1);
        }
        state[0] = 0x8000_0000;
        Self { state, index: N }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.index == N {
            self.renew();
        }
        let mut word = self.state[self.index];
        self.index += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for i in 0..N {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ twist;
        }
        self.index = 0;
    }

    /// A number below `n` (at least 1), by rejection as `_randbelow` does it.
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0 && n < u32::MAX as usize, "{n} is out of range");
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let draw = (self.next_u32() >> (32 - bits)) as usize;
            if draw < n {
                return draw;
            }
        }
    }

    /// `random.sample(range(pool), n)`: `n` different indices in the order in which they are drawn.
    pub fn sample(&mut self, pool: usize, n: usize) -> Vec<usize> {
        assert!(n <= pool, "cannot draw {n} of {pool}");
        // Python takes whichever needs less memory: a shuffled copy of the pool, or a set of what was drawn.
        let mut set_size = 21;
        if n > 5 {
            let mut power = 1;
            while power < 3 * n {
                power *= 4;
            }
            set_size += power;
        }
        if pool <= set_size {
            let mut indices: Vec<usize> = (0..pool).collect();
            return (0..n)
                .map(|drawn| {
                    let left = pool - drawn;
                    let j = self.below(left);
                    let taken = indices[j];
                    indices[j] = indices[left - 1];
                    taken
                })
                .collect();
        }
        let mut seen = HashSet::with_capacity(n);
        let mut drawn = Vec::with_capacity(n);
        while drawn.len() < n {
            let j = self.below(pool);
            if seen.insert(j) {
                drawn.push(j);
            }
        }
        drawn
    }
}

/// Keeps the seeding's index inside the state.
fn wrap_state(state: &mut [u32; N], i: usize) -> usize {
    if i < N {
        return i;
    }
    state[0] = state[N - 1];
    1
}

/// Chooses the examples of one document after another.
pub struct FewshotSampler {
    sampler: Sampler,
    random: PythonRandom,
    pool: usize,
    num_fewshot: usize,
}

impl FewshotSampler {
    /// Takes `num_fewshot` of `pool` examples per document; `num_fewshot` is at most `pool`.
    pub fn new(sampler: Sampler, pool: usize, num_fewshot: usize) -> Self {
        Self { sampler, random: PythonRandom::new(FEWSHOT_SEED), pool, num_fewshot }
    }

    /// Indices into the pool for the next document.
    pub fn next_document(&mut self) -> Vec<usize> {
        match self.sampler {
            _ if self.num_fewshot == 0 => Vec::new(),
            Sampler::FirstN => (0..self.num_fewshot).collect(),
            Sampler::Default => self.random.sample(self.pool, self.num_fewshot),
        }
    }

    /// The same where the pool holds the evaluated documents: `asked` is no example of itself.
    ///
    /// One more is drawn than is needed, the document taken out, and the rest cut to the number.
    pub fn next_but(&mut self, asked: usize) -> Vec<usize> {
        if self.num_fewshot == 0 {
            return Vec::new();
        }
        let drawn = match self.sampler {
            Sampler::FirstN => (0..=self.num_fewshot).collect(),
            Sampler::Default => self.random.sample(self.pool, self.num_fewshot + 1),
        };
        drawn.into_iter().filter(|&index| index != asked).take(self.num_fewshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::shared_fixtures;

    #[test]
    fn raw_words_equal_pythons_for_seed_1234() {
        let mut random = PythonRandom::new(1234);
        // [random.Random(1234) r.getrandbits(32) for 8 draws]
        let expected = [4150886329, 3342196574, 1892932127, 501869158, 32175636, 389311301, 3912611952, 4048155970];
        for word in expected {
            assert_eq!(random.next_u32(), word);
        }
    }

    #[test]
    fn the_state_is_renewed_as_python_does_it() {
        let mut random = PythonRandom::new(1234);
        let words: Vec<u32> = (0..2000).map(|_| random.next_u32()).collect();
        // Words 623, 624, 1247, 1248 and 1999 of CPython 3.11's random.Random(1234).getrandbits(32).
        assert_eq!([623, 624, 1247, 1248, 1999].map(|i| words[i]), PYTHON_LATE_WORDS);
    }

    const PYTHON_LATE_WORDS: [u32; 5] = [152069139, 3715477445, 408172097, 134171704, 881902874];

    #[test]
    fn both_ways_of_sampling_equal_pythons() {
        // One random.Random(1234) of CPython, r.sample(range(POOL), N) call after call. 21 and 85 are the largest
        // pools that are shuffled for these N.
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 3), [7, 1, 0]);
        assert_eq!(random.sample(10, 3), [1, 0, 9]);
        assert_eq!(random.sample(21, 5), [3, 11, 7, 0, 17]);
        assert_eq!(random.sample(22, 5), [0, 11, 20, 19, 15]);
        assert_eq!(random.sample(85, 6), [78, 59, 19, 11, 23, 14]);
        assert_eq!(random.sample(86, 6), [1, 64, 62, 31, 8, 85]);
    }

    #[test]
    fn a_document_is_no_example_of_itself() {
        let mut sampler = FewshotSampler::new(Sampler::FirstN, 10, 2);
        assert_eq!([0, 1, 2, 5].map(|asked| sampler.next_but(asked)), [[1, 2], [0, 2], [0, 1], [0, 1]]);
        // random.Random(1234).sample(range(10), 3) gives [7, 1, 0], then [1, 0, 9].
        let mut sampler = FewshotSampler::new(Sampler::Default, 10, 2);
        assert_eq!(sampler.next_but(7), [1, 0]);
        assert_eq!(sampler.next_but(5), [1, 0]);
    }

    #[test]
    fn draws_equal_those_of_the_harness() -> anyhow::Result<()> {
        let Some(prompts) = shared_fixtures::golden("prompts.json")? else { return Ok(()) };
        for task in ["gsm8k", "arc_easy", "arc_challenge"] {
            let case = &prompts["fewshot_sampling"][task];
            let size = |key: &str| case[key].as_u64().expect("a count") as usize;
            let mut sampler = FewshotSampler::new(Sampler::Default, size("pool"), size("k"));
            for draw in case["draws"].as_array().expect("a list of draws") {
                assert_eq!(serde_json::json!(sampler.next_document()), *draw, "{task}");
            }
        }
        Ok(())
    }
}
