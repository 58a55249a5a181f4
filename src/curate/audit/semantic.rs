//! Semantic diversity, on vectors of a sample of texts.
//!
//! The vectors are counts of hashed words and word pairs, weighted by how rare they are in the sample and scaled to length
//! one: no model is needed, and what they call alike shares vocabulary. They say less about paraphrases than an encoder's.
//!
//! **Source**: Vendi score, Friedman and Dieng 2023 (2210.02410); mean distance to the nearest neighbour, Magpie
//! (2406.08464); k-means++, Arthur and Vassilvitskii 2007.

use crate::curate::{
    audit::lexical::ngram_hashes,
    normalize::{Words, mix},
};

/// Dimensions of a vector.
pub const DIMENSIONS: usize = 512;
/// Sweeps after which the eigenvalues have converged whatever the matrix.
const MAX_SWEEPS: usize = 30;
/// Steps of k-means.
const MAX_STEPS: usize = 20;

/// One vector of length one per text.
pub fn vectors(texts: &[Words]) -> Vec<Vec<f32>> {
    let features = |words: &Words| -> Vec<usize> {
        let [single, pairs, ..] = ngram_hashes(words);
        single.into_iter().chain(pairs).map(|hash| (mix(hash) % DIMENSIONS as u64) as usize).collect()
    };
    let counts: Vec<Vec<f32>> = texts
        .iter()
        .map(|words| {
            let mut counts = vec![0f32; DIMENSIONS];
            features(words).into_iter().for_each(|place| counts[place] += 1.0);
            counts
        })
        .collect();
    let texts_with: Vec<f32> =
        (0..DIMENSIONS).map(|place| counts.iter().filter(|counts| counts[place] > 0.0).count() as f32).collect();
    counts
        .into_iter()
        .map(|counts| {
            let weighted = counts
                .iter()
                .zip(&texts_with)
                .map(|(&count, &with)| (1.0 + count).ln() * (1.0 + texts.len() as f32 / with.max(1.0)).ln());
            scaled(weighted.collect())
        })
        .collect()
}

fn scaled(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    vector
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum::<f32>().into()
}

/// The Vendi score: the exponential of the entropy of the eigenvalues of the similarity matrix over its size. The
/// effective number of different items: 1 when all are the same, their number when none resembles another.
pub fn vendi(vectors: &[Vec<f32>]) -> f64 {
    let size = vectors.len();
    let mut matrix = vec![0f64; size * size];
    for row in 0..size {
        for column in 0..=row {
            let similarity = if row == column { 1.0 } else { dot(&vectors[row], &vectors[column]) };
            matrix[row * size + column] = similarity / size as f64;
            matrix[column * size + row] = similarity / size as f64;
        }
    }
    let entropy: f64 =
        eigenvalues(matrix, size).into_iter().filter(|&value| value > 1e-12).map(|value| -value * value.ln()).sum();
    if size == 0 { 0.0 } else { entropy.exp() }
}

/// Eigenvalues of a symmetric matrix, by Jacobi's cyclic rotations.
///
/// **Source**: Golub and Van Loan, *Matrix Computations*, section 8.5.
fn eigenvalues(mut matrix: Vec<f64>, size: usize) -> Vec<f64> {
    for _ in 0..MAX_SWEEPS {
        let off: f64 = (0..size)
            .flat_map(|row| (0..row).map(move |column| (row, column)))
            .map(|(row, column)| matrix[row * size + column].powi(2))
            .sum();
        if off < 1e-18 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                let apq = matrix[p * size + q];
                if apq.abs() < 1e-15 {
                    continue;
                }
                let theta = (matrix[q * size + q] - matrix[p * size + p]) / (2.0 * apq);
                let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let tangent = if theta == 0.0 { 1.0 } else { tangent };
                let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
                let sine = tangent * cosine;
                for k in 0..size {
                    let (kp, kq) = (matrix[k * size + p], matrix[k * size + q]);
                    matrix[k * size + p] = cosine * kp - sine * kq;
                    matrix[k * size + q] = sine * kp + cosine * kq;
                }
                for k in 0..size {
                    let (pk, qk) = (matrix[p * size + k], matrix[q * size + k]);
                    matrix[p * size + k] = cosine * pk - sine * qk;
                    matrix[q * size + k] = sine * pk + cosine * qk;
                }
            }
        }
    }
    (0..size).map(|place| matrix[place * size + place]).collect()
}

/// Mean cosine similarity of each vector to its nearest other one.
pub fn nearest_neighbour(vectors: &[Vec<f32>]) -> f64 {
    if vectors.len() < 2 {
        return 0.0;
    }
    let nearest = |own: usize| {
        let others = (0..vectors.len()).filter(|&other| other != own);
        others.map(|other| dot(&vectors[own], &vectors[other])).fold(f64::MIN, f64::max)
    };
    (0..vectors.len()).map(nearest).sum::<f64>() / vectors.len() as f64
}

/// Entropy of the sizes of `clusters` clusters, as a share of the greatest possible: 1 when all are of one size.
///
/// Spherical k-means from the furthest-first start: each next centre is the vector least like all centres before.
pub fn cluster_entropy(vectors: &[Vec<f32>], clusters: usize) -> f64 {
    let clusters = clusters.min(vectors.len());
    if clusters < 2 {
        return 0.0;
    }
    let mut centres = vec![vectors[0].clone()];
    let mut closest: Vec<f64> = vectors.iter().map(|vector| dot(vector, &centres[0])).collect();
    while centres.len() < clusters {
        let far = (0..vectors.len()).min_by(|&left, &right| closest[left].total_cmp(&closest[right])).unwrap_or(0);
        centres.push(vectors[far].clone());
        for (closest, vector) in closest.iter_mut().zip(vectors) {
            *closest = closest.max(dot(vector, &vectors[far]));
        }
    }
    let mut member_of = vec![usize::MAX; vectors.len()];
    for _ in 0..MAX_STEPS {
        let mut is_stable = true;
        for (member_of, vector) in member_of.iter_mut().zip(vectors) {
            let similarity: Vec<f64> = centres.iter().map(|centre| dot(vector, centre)).collect();
            let best = (0..clusters).rev().max_by(|&left, &right| similarity[left].total_cmp(&similarity[right]));
            is_stable &= best == Some(*member_of);
            *member_of = best.unwrap_or(0);
        }
        if is_stable {
            break;
        }
        for (cluster, centre) in centres.iter_mut().enumerate() {
            let mut sum = vec![0f32; centre.len()];
            for (vector, _) in vectors.iter().zip(&member_of).filter(|(_, member_of)| **member_of == cluster) {
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
            }
            *centre = scaled(sum);
        }
    }
    let mut sizes = vec![0usize; clusters];
    member_of.iter().for_each(|&cluster| sizes[cluster] += 1);
    entropy(&sizes) / (clusters as f64).ln()
}

/// Shannon entropy of counts, in nats.
pub fn entropy(counts: &[usize]) -> f64 {
    let total: usize = counts.iter().sum();
    let share = |count: usize| count as f64 / total.max(1) as f64;
    counts.iter().filter(|&&count| count > 0).map(|&count| -share(count) * share(count).ln()).sum()
}
