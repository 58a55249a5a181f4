//! Recall and precision of the near-duplicate search, against the Jaccard similarity of the texts' own word triples.

use std::collections::HashSet;

use rand::Rng;

use super::{
    dedup::{Dedup, Duplicate, Fingerprint},
    normalize::Words,
};
use crate::seed;

const THRESHOLD: f64 = 0.8;
/// Words of a made question: with one in the middle and one at an end replaced, 34 of 42 triples are shared (0.81).
const WORDS: usize = 40;

fn triples(words: &[String]) -> HashSet<&[String]> {
    words.windows(3).collect()
}

fn exact_jaccard(left: &[String], right: &[String]) -> f64 {
    let (left, right) = (triples(left), triples(right));
    let common = left.intersection(&right).count();
    common as f64 / (left.len() + right.len() - common) as f64
}

/// A question, and the same one with these words replaced.
fn pair(number: usize, replaced: &[usize]) -> [Vec<String>; 2] {
    let mut random = seed::stream(7, "dedup_tests", &number.to_string());
    let mut word = || letters(random.random_range(1_000..400_000));
    let question: Vec<String> = (0..WORDS).map(|_| word()).collect();
    let mut other = question.clone();
    replaced.iter().for_each(|&place| other[place] = word());
    [question, other]
}

/// A number as letters, since numbers are compared apart.
fn letters(mut number: u32) -> String {
    let mut text = String::new();
    while number > 0 {
        text.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
    }
    text
}

/// Of `count` pairs with these words replaced: their exact similarity, and the share that was found.
fn found(count: usize, replaced: impl Fn(usize) -> Vec<usize>) -> (f64, f64) {
    let mut dedup = Dedup::new(THRESHOLD);
    let minhash = dedup.minhash();
    let mut push =
        |words: &[String]| dedup.push(&Fingerprint::new(&Words::of(&words.join(" ")), &Words::default(), minhash));
    let pairs: Vec<[Vec<String>; 2]> = (0..count).map(|number| pair(number, &replaced(number))).collect();
    pairs.iter().for_each(|[question, _]| assert_eq!(push(question), None, "made questions share no triple"));
    let (mut similarity, mut hits) = (0.0, 0);
    for (number, [question, other]) in pairs.iter().enumerate() {
        let exact = exact_jaccard(question, other);
        similarity += exact / count as f64;
        match push(other) {
            Some(Duplicate::Near(kept, stated)) => {
                assert_eq!(kept, number, "the near-duplicate of its own question");
                assert!(
                    (stated - exact).abs() < 1e-9 && exact >= THRESHOLD,
                    "{number}: {stated} stated, {exact} exact"
                );
                hits += 1;
            }
            Some(Duplicate::Exact(_)) => panic!("{number} differs from every question"),
            None => {}
        }
    }
    (similarity, hits as f64 / count as f64)
}

#[test]
fn recall_right_above_the_threshold_is_the_stated_one_and_precision_is_exact() {
    const COUNT: usize = 6000;
    let middle = |number: usize| 5 + number % 30;
    let stated =
        |similarity: f64| Dedup::new(THRESHOLD).minhash().map_or(0.0, |minhash| minhash.probability(similarity));
    // One replaced word in the middle, alone and with one at an end: 0.854 and 0.810.
    for (replaced, least) in [(vec![], 0.85), (vec![WORDS - 1], 0.8)] {
        let places = |number: usize| [vec![middle(number)], replaced.clone()].concat();
        let (similarity, recall) = found(COUNT, places);
        let expected = stated(similarity);
        // Four standard deviations of a binomial.
        let allowed = 4.0 * (expected * (1.0 - expected) / COUNT as f64).sqrt();
        assert!(similarity > least && expected > 0.99, "{similarity}: {expected} stated");
        assert!((recall - expected).abs() < allowed, "{similarity}: {recall} found, {expected} stated");
        println!("similarity {similarity:.3}: {recall:.4} found, {expected:.4} stated");
    }
    // Right below it nothing is found: a word in the middle and both ends, 33 of 43.
    let (similarity, recall) = found(COUNT, |number| vec![0, middle(number), WORDS - 1]);
    assert!(similarity > 0.76 && recall == 0.0, "{similarity}: {recall} found");
}
