//! IFEval against the harness's own verdicts, and the kinds of instructions one by one.

use std::collections::HashMap;

use serde_json::json;

use super::*;
use crate::{evaluate::shared_fixtures, telemetry};

/// Rows of the benchmark by key, and the checker; `None`, said aloud, where the folder is not there.
fn benchmark() -> Result<Option<(HashMap<u64, Value>, Checker)>> {
    let Some(folder) = shared_fixtures::benchmarks() else {
        telemetry::print_result("skipped: no folder of benchmarks with ifeval/");
        return Ok(None);
    };
    let rows = data::read_rows(&folder, "ifeval/input_data.jsonl")?;
    let rows = rows.into_iter().map(|(_, row)| (row["key"].as_u64().expect("a key"), row)).collect();
    Ok(Some((rows, Checker::load(&folder)?)))
}

/// A checker that knows no abbreviation and two made-up languages.
fn bare() -> Checker {
    let punkt = json!({"sentence_starters": [], "abbrev_types": [], "collocations": [], "ortho_context": {}});
    let profiles = "{\"name\": \"en\", \"freq\": {\"a\": 1}, \"n_words\": [1, 1, 1]}\n\
                    {\"name\": \"de\", \"freq\": {\"z\": 1}, \"n_words\": [1, 1, 1]}\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("ifeval")).unwrap();
    std::fs::write(folder.path().join(PUNKT), punkt.to_string()).unwrap();
    std::fs::write(folder.path().join(language::PROFILES), profiles).unwrap();
    Checker::load(folder.path()).unwrap()
}

fn row(id: &str, arguments: &Value) -> Value {
    json!({"instruction_id_list": [id], "kwargs": [arguments]})
}

/// Catches: any check, variant or library that differs from the harness's.
#[test]
fn verdicts_equal_those_of_the_harness() -> Result<()> {
    let Some((rows, checker)) = benchmark()? else { return Ok(()) };
    let mut bytes = String::new();
    let path = shared_fixtures::benchmarks().expect("it was there above").join("golden/ifeval.json.gz");
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(std::fs::File::open(path)?), &mut bytes)?;
    let golden: Value = serde_json::from_str(&bytes)?;
    let responses: Vec<&str> = golden["responses"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();

    let (mut compared, mut random, mut different) = (0, 0, Vec::new());
    for prompt in golden["prompts"].as_array().unwrap() {
        let row = &rows[&prompt["key"].as_u64().unwrap()];
        let to_repeat = row["kwargs"].as_array().unwrap().iter().find_map(|it| it["prompt_to_repeat"].as_str());
        let echo = format!("{}\n\n{}", to_repeat.unwrap_or(row["prompt"].as_str().unwrap()), responses[1]);
        let own = prompt["own"].as_str().unwrap_or_default();
        let texts = responses.iter().copied().chain([echo.as_str(), own]);
        let expected = prompt["results"].as_array().unwrap();
        for (index, (text, expected)) in texts.zip(expected).enumerate() {
            let verdicts = checker.verdicts(row, text)?;
            for (followed, expected) in [(&verdicts.strict, &expected[0]), (&verdicts.loose, &expected[1])] {
                for (followed, expected) in followed.iter().zip(expected.as_str().unwrap().chars()) {
                    match expected {
                        '?' => random += 1,
                        _ if *followed == (expected == '1') => compared += 1,
                        _ => different.push(format!("{} response {index}: expected {expected}", prompt["key"])),
                    }
                }
            }
        }
    }
    telemetry::print_result(format!("{compared} verdicts agree, {} differ, {random} are random", different.len()));
    assert!(different.is_empty(), "{different:#?}");
    assert!(compared > 10_000, "only {compared} verdicts were compared");
    Ok(())
}

#[test]
fn every_row_of_the_benchmark_can_be_read() -> Result<()> {
    let Some((rows, checker)) = benchmark()? else { return Ok(()) };
    let mut instructions = 0;
    for row in rows.values() {
        instructions += checker.verdicts(row, "Yes.").with_context(|| row["key"].to_string())?.strict.len();
    }
    assert_eq!((rows.len(), instructions), (541, 834));
    Ok(())
}

/// One text that follows and one that does not, for every kind.
#[test]
fn every_kind_tells_a_text_that_follows_from_one_that_does_not() -> Result<()> {
    let checker = bare();
    for (id, arguments, good, bad) in [
        ("keywords:existence", json!({"keywords": ["cat", "dog"]}), "Dogs and CATS", "cat"),
        ("keywords:frequency", json!({"keyword": "ab ", "frequency": 2, "relation": "at least"}), "abAB", "ab"),
        ("keywords:frequency", json!({"keyword": "ab", "frequency": 2, "relation": "less than"}), "ab", "ab ab"),
        ("keywords:forbidden_words", json!({"forbidden_words": ["he"]}), "the hen_he", "Theatre! Is He?"),
        (
            "keywords:letter_frequency",
            json!({"letter": "A", "let_frequency": 3, "let_relation": "at least"}),
            "aAa",
            "aa",
        ),
        ("keywords:letter_frequency", json!({"letter": "#", "let_frequency": 1, "let_relation": "at least"}), "#", "a"),
        ("language:response_language", json!({"language": "de"}), "zzz", "aaa"),
        (
            "length_constraints:number_sentences",
            json!({"num_sentences": 2, "relation": "at least"}),
            "It is. So it is.",
            "It is",
        ),
        ("length_constraints:number_paragraphs", json!({"num_paragraphs": 2}), "***\na\n***\nb\n***", "a***\n***b"),
        ("length_constraints:number_words", json!({"num_words": 3, "relation": "less than"}), "don't", "don't go"),
        (
            "length_constraints:nth_paragraph_first_word",
            json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yes"}),
            "a\n\n'yes, b",
            "a\n\n\n\nyes",
        ),
        ("detectable_content:number_placeholders", json!({"num_placeholders": 2}), "[a] [b]", "[a\n] [b]"),
        ("detectable_content:postscript", json!({"postscript_marker": "P.S."}), "a\np. s. b", "ps b"),
        ("detectable_content:postscript", json!({"postscript_marker": "P.P.S"}), "P. P.S b", "P.S. b"),
        ("detectable_format:number_bullet_lists", json!({"num_bullets": 2}), "* a\n - b", "* a\n** b"),
        ("detectable_format:constrained_response", json!({}), "So: My answer is no.", "my answer is no."),
        ("detectable_format:number_highlighted_sections", json!({"num_highlights": 2}), "*a* b *c*", "*a* **"),
        (
            "detectable_format:multiple_sections",
            json!({"section_spliter": "Section", "num_sections": 2}),
            "Section 1 a Section 2 b",
            "Section 1 a SECTION 2",
        ),
        ("detectable_format:json_format", json!({}), "```json\n{\"a\": NaN}\n```", "{'a': 1}"),
        ("detectable_format:title", json!({}), "<<a>>", "<< >>"),
        ("combination:two_responses", json!({}), "a ****** b", "a ****** a"),
        ("combination:repeat_prompt", json!({"prompt_to_repeat": " Say A"}), "say a\nA", "A say a"),
        ("startend:end_checker", json!({"end_phrase": "the End. "}), "x \"The end.\" ", "The end. x"),
        ("startend:quotation", json!({}), " \"a\" ", "\""),
        (
            "change_case:capital_word_frequency",
            json!({"capital_frequency": 3, "capital_relation": "at least"}),
            "I CANNOT a",
            "I Can A",
        ),
        ("change_case:english_capital", json!({}), "!A A", "Aa"),
        ("change_case:english_lowercase", json!({}), "a a!", "z z"),
        ("punctuation:no_comma", json!({}), "a; b", "a, b"),
    ] {
        let row = row(id, &arguments);
        assert_eq!(checker.verdicts(&row, good)?.strict, [true], "{id}: {good:?}");
        let verdicts = checker.verdicts(&row, bad)?;
        assert_eq!(verdicts.strict, [false], "{id}: {bad:?}");
        assert_eq!(checker.verdicts(&row, " \n ")?, Verdicts { strict: vec![false], loose: vec![false] }, "{id}");
    }
    Ok(())
}

#[test]
fn the_loose_check_forgives_a_first_line_a_last_line_and_asterisks() -> Result<()> {
    let checker = bare();
    let row = row("startend:quotation", &json!({}));
    for text in ["Sure:\n\"a\"", "\"a\"\nDone.", "Sure:\n\"a\"\nDone.", "**\"a\"**", "Sure:\n*\"a\"*\nDone."] {
        let verdicts = checker.verdicts(&row, text)?;
        assert_eq!((verdicts.all_strict(), verdicts.all_loose()), (false, true), "{text:?}");
    }
    assert!(!checker.verdicts(&row, "Sure: \"a\"")?.all_loose());
    Ok(())
}

#[test]
fn accuracies_count_prompts_and_instructions() {
    let verdict = |strict: &[bool], loose: &[bool]| Verdicts { strict: strict.into(), loose: loose.into() };
    let verdicts = [verdict(&[true, false, false], &[true, true, true]), verdict(&[true], &[true])];
    let accuracies = Accuracies::of(&verdicts);
    assert_eq!(accuracies.prompt_level_strict_acc, 0.5);
    assert_eq!(accuracies.inst_level_strict_acc, 0.5);
    assert_eq!(accuracies.prompt_level_loose_acc, 1.0);
    assert_eq!(accuracies.inst_level_loose_acc, 1.0);
    assert_eq!(Accuracies::of([]).inst_level_strict_acc, 0.0);
}

#[test]
fn rows_that_are_not_as_expected_are_named() {
    let checker = bare();
    for (row, message) in [
        (row("keywords:rhymes", &json!({})), "there is no instruction `keywords:rhymes`"),
        (row("length_constraints:number_words", &json!({"num_words": 3})), "expected a string under `relation`"),
        (row("keywords:existence", &json!({"keywords": ["("]})), "`(` is no regular expression"),
        (json!({"instruction_id_list": [], "kwargs": [{}]}), "has 0 entries and `kwargs` 1"),
    ] {
        let error = checker.verdicts(&row, "x").expect_err("the row is wrong");
        assert!(format!("{error:#}").contains(message), "{error:#}");
    }
}
