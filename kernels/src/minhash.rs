//! MinHash signatures: of a set, the least value of each of many hash functions.
//!
//! `signature[f] = min over x of (multipliers[f] * x + offsets[f])`, modulo 2^32. The members must be well mixed
//! already; an odd multiplier and an offset then make functions whose minima agree between two sets with the probability
//! of their Jaccard similarity. The 32-bit product is the widest that vector units multiply at full speed.
//! Source: Broder 1997; Dietzfelbinger et al. 1997 (multiply-shift hashing).

use crate::simd::simd_fn;

/// Functions computed together: their minima stay in registers over the whole set.
const BLOCK: usize = 32;

simd_fn! {
    /// Writes the signature of `members` under `multipliers.len()` functions; an empty set has `u32::MAX` everywhere.
    ///
    /// **Shapes**: `multipliers`, `offsets`, `signature` `[F]`.
    pub fn signature(members: &[u32], multipliers: &[u32], offsets: &[u32], signature: &mut [u32]) {
        let functions = multipliers.chunks(BLOCK).zip(offsets.chunks(BLOCK));
        for ((multipliers, offsets), signature) in functions.zip(signature.chunks_mut(BLOCK)) {
            let (mut a, mut b, mut least) = ([0u32; BLOCK], [0u32; BLOCK], [u32::MAX; BLOCK]);
            a[..multipliers.len()].copy_from_slice(multipliers);
            b[..offsets.len()].copy_from_slice(offsets);
            for &member in members {
                for function in 0..BLOCK {
                    let hash = a[function].wrapping_mul(member).wrapping_add(b[function]);
                    least[function] = least[function].min(hash);
                }
            }
            signature.copy_from_slice(&least[..signature.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_computes_the_formula() {
        let numbers = |count: u32, salt: u32| -> Vec<u32> {
            (1..=count).map(|n| n.wrapping_mul(0x9e37_79b9).rotate_left(salt) | 1).collect()
        };
        for functions in [1, 63, 64, 96, 128, 130] {
            for members in [0, 1, 7, 200] {
                let (set, a, b) = (numbers(members, 3), numbers(functions, 7), numbers(functions, 11));
                let mut found = vec![0; functions as usize];
                signature(&set, &a, &b, &mut found);
                let expected: Vec<u32> = (a.iter().zip(&b))
                    .map(|(a, b)| set.iter().map(|x| a.wrapping_mul(*x).wrapping_add(*b)).min().unwrap_or(u32::MAX))
                    .collect();
                assert_eq!(found, expected, "{functions} functions, {members} members");
            }
        }
    }
}
