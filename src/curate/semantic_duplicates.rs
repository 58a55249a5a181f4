//! Questions that mean the same in other words, by the vectors of an encoder; off unless one is configured.
//!
//! Every kept question is compared with every other one, exactly: a hundred thousand take minutes, a million hours and
//! `4 * hidden_size` bytes each. Meaning is looked for last, after words: of two questions that differ in a number alone an
//! encoder thinks highly, so what arithmetic asks should keep its threshold near 1.
//!
//! **Source**: SemDeDup, Abbas et al. 2023 (2303.09540), without its clusters.

use crate::language_model::TextEncoder;

/// The vectors of the kept questions, in order.
pub struct SemanticIndex {
    threshold: f32,
    vectors: Vec<Vec<f32>>,
}

impl SemanticIndex {
    /// `threshold` is the least cosine of two questions that mean the same.
    pub fn new(threshold: f64) -> Self {
        Self { threshold: threshold as f32, vectors: Vec::new() }
    }

    /// Number of vectors so far: that of the next one.
    pub fn next_number(&self) -> usize {
        self.vectors.len()
    }

    /// The vector most like this one among those from number `from` on, and their cosine, if that reaches the threshold;
    /// of equals the first.
    pub fn find(&self, vector: &[f32], from: usize) -> Option<(usize, f32)> {
        let mut best: Option<(usize, f32)> = None;
        for (number, other) in self.vectors.iter().enumerate().skip(from) {
            let cosine = dot(vector, other);
            if cosine >= self.threshold && best.is_none_or(|(_, most)| cosine > most) {
                best = Some((number, cosine));
            }
        }
        best
    }

    /// Adds the next vector.
    pub fn push(&mut self, vector: Vec<f32>) {
        self.vectors.push(vector);
    }
}

/// Sums in eight lanes, so that the processor adds them at once; in the same order everywhere.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (left, right) = (left.chunks_exact(8), right.chunks_exact(8));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in left.zip(right) {
        for lane in 0..8 {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// What looks for meaning: an encoder.
pub type Encoder<'a> = Option<&'a dyn TextEncoder>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_vector_from_a_number_on_is_found() {
        let unit = |angle: f32| {
            let mut vector = vec![0.0; 11];
            (vector[0], vector[10]) = (angle.cos(), angle.sin());
            vector
        };
        let mut index = SemanticIndex::new(0.9);
        [0.0, 1.0, 0.3, 0.3].into_iter().for_each(|angle| index.push(unit(angle)));
        let found = |angle: f32, from: usize| index.find(&unit(angle), from).map(|(number, _)| number);
        assert_eq!(
            (found(0.05, 0), found(0.25, 0), found(0.05, 1), found(0.6, 0)),
            (Some(0), Some(2), Some(2), Some(2))
        );
        assert_eq!((found(2.0, 0), found(0.05, 4)), (None, None));
        let (_, cosine) = index.find(&unit(0.4), 0).expect("a near one");
        assert!((cosine - 0.1f32.cos()).abs() < 1e-6, "{cosine}");
    }
}
