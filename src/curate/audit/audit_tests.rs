//! The measures against numpy's, and the audit of planted rows.

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::curate::rows::RowFormat;

/// What `scripts/make_audit_fixture.py` computed.
#[derive(Deserialize)]
struct Fixture {
    texts: Vec<String>,
    distinct_n: [f64; MAX_N],
    self_repetition: f64,
    self_bleu: f64,
    compression_ratio: f64,
    vectors: Vec<Vec<f32>>,
    vendi: f64,
    nearest_neighbour: f64,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../tests/fixtures/audit.json")).expect("the fixture is JSON")
}

fn near(found: f64, expected: f64, relative: f64, what: &str) {
    assert!((found - expected).abs() <= relative * expected.abs(), "{what}: {found}, numpy says {expected}");
}

#[test]
fn lexical_measures_are_those_of_the_definitions() {
    let fixture = fixture();
    let words: Vec<Words> = fixture.texts.iter().map(|text| Words::of(text)).collect();
    let mut ngrams = Ngrams::default();
    words.iter().for_each(|words| ngrams.add(&lexical::ngram_hashes(words)));
    for (n, (found, expected)) in ngrams.distinct_n().into_iter().zip(fixture.distinct_n).enumerate() {
        // The registers estimate; among 2^14 of them a few hundred n-grams are counted to a percent or two.
        near(found, expected, 0.02, &format!("distinct-{}", n + 1));
    }
    near(lexical::self_repetition(&words), fixture.self_repetition, 1e-12, "self-repetition");
    near(lexical::self_bleu(&words), fixture.self_bleu, 1e-12, "Self-BLEU");
    let texts: Vec<&str> = fixture.texts.iter().map(String::as_str).collect();
    // Another packer of the same format.
    near(lexical::compression_ratio(&texts), fixture.compression_ratio, 0.05, "compression ratio");
}

#[test]
fn semantic_measures_are_those_of_numpy() {
    let fixture = fixture();
    near(semantic::vendi(&fixture.vectors), fixture.vendi, 1e-5, "Vendi score");
    near(semantic::nearest_neighbour(&fixture.vectors), fixture.nearest_neighbour, 1e-5, "nearest neighbour");
    let same = vec![vec![1.0, 0.0]; 5];
    near(semantic::vendi(&same), 1.0, 1e-9, "five times the same");
    let different: Vec<Vec<f32>> =
        (0..6).map(|own| (0..6).map(|at| f32::from(u8::from(own == at))).collect()).collect();
    near(semantic::vendi(&different), 6.0, 1e-9, "six that share nothing");
    let two: Vec<Vec<f32>> = (0..8).map(|at| if at < 4 { vec![0.0, 1.0] } else { vec![1.0, 0.0] }).collect();
    near(semantic::cluster_entropy(&two, 2), 1.0, 1e-9, "four against four");
    let uneven: Vec<Vec<f32>> = (0..20).map(|at| if at == 0 { vec![0.0, 1.0] } else { vec![1.0, 0.0] }).collect();
    near(semantic::cluster_entropy(&uneven, 2), 0.286_397, 1e-4, "nineteen against one");
}

#[test]
fn many_distinct_hashes_are_counted_within_three_standard_errors() {
    for count in [10u64, 1_000, 100_000, 1_000_000] {
        let (mut whole, mut half) = (lexical::Distinct::default(), lexical::Distinct::default());
        for number in 0..count {
            (if number % 2 == 0 { &mut whole } else { &mut half }).add(mix(number + 1));
        }
        whole.merge(&half);
        near(whole.count(), count as f64, 0.025, "distinct hashes");
    }
}

fn row(id: &str, discipline: &str, concept: &str, question: &str, answer: &str) -> Row {
    let line = json!({
        "id": id, "discipline": discipline, "subject": "S", "key_concepts": [concept],
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    });
    Row::parse(line.to_string().as_bytes(), 1, RowFormat::Messages).expect("a row")
}

fn audit_of(row: &Row, lexicon: &Lexicon) -> RowAudit {
    RowAudit::of(row, &RowText::of(&row.messages), lexicon)
}

#[test]
fn stages_say_what_each_filter_removed() {
    let lexicon = Lexicon::built_in();
    let (mut kept, mut removed) = (Tally::default(), Tally::default());
    for number in 0..40 {
        let text = format!("river {number} runs past stone {} and bird {}", number * 7, number * 13);
        kept.add(audit_of(
            &row(&format!("k{number}"), "Physics", &format!("c{number}"), &text, "She is Kenyan."),
            lexicon,
        ));
        removed.add(audit_of(
            &row(&format!("r{number}"), "Music", "c", "the same words again", "He is an idiot."),
            lexicon,
        ));
    }
    let stages = stages(&[("quality", removed), ("threshold", Tally::default())], &kept, lexicon, None)
        .expect("no encoder can fail");
    let names: Vec<&str> = stages.iter().map(|stage| stage.stage.as_str()).collect();
    assert_eq!(names, ["all", "after quality", "after threshold"]);
    let (all, after) = (&stages[0], &stages[1]);
    assert_eq!((all.rows, after.rows, stages[2].rows), (80, 40, 40));
    assert_eq!((all.coverage.disciplines, after.coverage.disciplines), (2, 1));
    assert_eq!((all.coverage.key_concepts, after.coverage.key_concepts), (41, 40));
    assert!(after.coverage.key_concepts_share > 0.97 && after.coverage.disciplines_share == 0.5);
    assert_eq!(all.representation["gender"].categories["male"].rows, 40);
    assert_eq!(after.representation["gender"].categories["male"].rows, 0);
    assert_eq!(after.representation["gender"].categories["female"].share, 1.0);
    assert_eq!(after.representation["toxic"].categories["insult"].mentions, 0);
    assert_eq!(after.representation["region"].categories["sub_saharan_africa"].rows, 40);
    assert!(after.vendi_score > all.vendi_score * 0.9 && after.compression_ratio < all.compression_ratio);
    assert!(after.self_repetition < all.self_repetition && after.nearest_neighbour < all.nearest_neighbour);
}

#[test]
fn the_order_of_rows_changes_nothing() {
    let lexicon = Lexicon::built_in();
    let audit = |order: &mut dyn Iterator<Item = usize>| {
        let mut tally = Tally::default();
        for number in order {
            let text = format!("question {} about {}", number, number % 17);
            tally.add(audit_of(&row(&format!("{number}"), "D", "c", &text, "An answer."), lexicon));
        }
        measure("all", &tally, &tally, lexicon, None).expect("no encoder can fail")
    };
    assert_eq!(audit(&mut (0..900)), audit(&mut (0..900).rev()));
}
