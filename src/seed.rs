//! Randomness: one independent stream per record, so that a record depends on itself and not on its neighbours, its
//! batch or a resume.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The random stream of one record: `stream(run_seed, stage, record_id)`.
///
/// The same three values give the same numbers on every machine; any other triple gives an unrelated stream.
pub fn stream(run_seed: u64, stage: &str, record_id: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(*digest(run_seed, stage, record_id).as_bytes())
}

/// A 64-bit seed for code that takes an integer (the sampler of one request).
pub fn derive(run_seed: u64, stage: &str, record_id: &str) -> u64 {
    let bytes = *digest(run_seed, stage, record_id).as_bytes();
    u64::from_le_bytes(bytes[..8].try_into().expect("a digest has 32 bytes"))
}

/// A record id: 16 hexadecimal digits of the hash of what made the record.
///
/// Parts are length-prefixed, so `["ab", "c"]` and `["a", "bc"]` differ.
pub fn record_id(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_string()
}

fn digest(run_seed: u64, stage: &str, record_id: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&run_seed.to_le_bytes());
    hasher.update(&(stage.len() as u64).to_le_bytes());
    hasher.update(stage.as_bytes());
    hasher.update(record_id.as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_every_argument() {
        let draw = |seed, stage, id| stream(seed, stage, id).random::<u64>();
        assert_eq!(draw(1, "a", "b"), draw(1, "a", "b"));
        assert_ne!(draw(1, "a", "b"), draw(2, "a", "b"));
        assert_ne!(draw(1, "a", "b"), draw(1, "ab", ""));
        assert_ne!(draw(1, "a", "b"), draw(1, "a", "c"));
        assert_ne!(record_id(&["ab", "c"]), record_id(&["a", "bc"]));
    }
}
