//! Decontamination on small planted sets.

use super::{
    benchmarks::BenchmarkText,
    decontaminate::{BenchmarkIndex, IndexBuilder, Leak},
    normalize::Words,
    row_words::Conversation,
};
use crate::language_model::Message;

const LONG: &str = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. \
                    How many clips did Natalia sell altogether?";

fn index(items: &[(&str, Option<&str>)]) -> BenchmarkIndex {
    let mut builder = IndexBuilder::new(13);
    for (index, (question, answer)) in items.iter().enumerate() {
        builder.add(&BenchmarkText {
            source: "planted.jsonl".into(),
            index,
            question: (*question).into(),
            answer: answer.map(str::to_owned),
            choices: Vec::new(),
        });
    }
    builder.build()
}

fn find(index: &BenchmarkIndex, question: &str, answer: &str) -> Option<Leak> {
    let turns = [Message::user(question), Message::assistant(answer)];
    index.find(&Words::of(question), &Conversation::of(&turns))
}

fn leaked_item(index: &BenchmarkIndex, question: &str, answer: &str) -> Option<usize> {
    find(index, question, answer).map(|leak| leak.index)
}

#[test]
fn verbatim_recased_repunctuated_and_embedded_items_are_found() {
    let index = index(&[("What is the boiling point of water at sea level?", None), (LONG, Some("72"))]);
    let bare: String = LONG.chars().filter(|char| !char.is_ascii_punctuation()).collect();
    for planted in [LONG.to_owned(), LONG.to_uppercase(), bare, format!("Solve this! {LONG} Show your work.")] {
        assert_eq!(leaked_item(&index, &planted, "72"), Some(1), "{planted}");
    }
    assert_eq!(leaked_item(&index, "Write a riddle.", LONG), Some(1), "an answer leaks as well as a question");
    let short = "Tell me: WHAT IS the boiling-point of water, at sea level";
    assert_eq!(leaked_item(&index, short, "100 C"), Some(0));
}

#[test]
fn the_same_text_with_other_numbers_is_found_and_says_so() {
    let index = index(&[(LONG, None)]);
    let numbers = find(&index, &LONG.replace("48", "1,250"), "").expect("a leak");
    assert_eq!(numbers.index, 0);
    let dense = "If 12 men dig 5 ditches in 7 days, how many ditches do 9 men dig in 21 days?";
    let index = self::index(&[(dense, None)]);
    let other = dense.replace("12", "16").replace('5', "3").replace('9', "4").replace('7', "8");
    let leak = find(&index, &other, "").expect("a leak");
    assert!(leak.other_numbers && leak.to_string().contains("planted.jsonl item 0 with other numbers"), "{leak}");
}

#[test]
fn innocent_look_alikes_are_kept() {
    let items = [
        (LONG, Some("72")),
        ("What is 34 + 25?", Some("59")),
        ("What is the capital of Australia?", Some("Canberra")),
        ("Who won?", None),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", None),
        ("a b c d e f g h i j k l m n o p", None),
    ];
    let index = index(&items);
    for (question, answer) in [
        ("What is 34 + 26?", "60"),
        ("What is 34 - 25?", "9"),
        ("What is 34 + 25 + 7?", "66"),
        ("What is the capital of Austria?", "Vienna"),
        ("Canberra is the capital of Australia. Who won the last election there?", "The count goes on."),
        ("Natalia baked pies for 48 of her friends in April. How many did she bake in May?", "24"),
        ("Count to fifteen.", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("Recite the alphabet.", "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P"),
    ] {
        assert_eq!(find(&index, question, answer), None, "{question}");
    }
    assert_eq!(leaked_item(&index, "Who won", "They did."), Some(3), "a tiny item is a leak as a whole question");
    for (question, answer) in
        [("Now, what is 34 + 25?", "59"), ("What is 34 + 25 = ?", "59"), ("What is 34 + 25", "-9")]
    {
        assert_eq!(leaked_item(&index, question, answer), Some(1), "{question} {answer}");
    }
}

#[test]
fn what_many_items_share_is_evidence_of_none() {
    let rule = "Read the sentence below with care and then say whether its tone is glad or sad:";
    let words = ["kite", "lamp", "moss", "nail", "opal", "pear", "quay", "rope", "seed", "tide", "urn", "vase"];
    let items: Vec<String> = words
        .iter()
        .map(|word| format!("{rule} the {word} broke and all of us who saw it wept aloud {word}"))
        .collect();
    let items: Vec<_> = items.iter().map(|item| (item.as_str(), None)).collect();
    let index = index(&items);
    assert_eq!(find(&index, &format!("{rule} my dog came home."), "glad"), None);
    assert_eq!(leaked_item(&index, items[4].0, "sad"), Some(4));
    assert!(index.counts().dropped_as_common > 0);
}

#[test]
fn a_short_question_asked_twice_with_different_answers_names_no_item_without_its_answer() {
    let index = index(&[
        ("Which of these is true?", Some("Whales breathe with lungs and come up to the surface for air")),
        ("Which of these is true?", Some("Iron rusts")),
        ("Which of these woods floats?", Some("Cork")),
        ("Which of these woods floats?", Some("Cork")),
    ]);
    assert_eq!(leaked_item(&index, "Tell me. Which of these is true? Water is wet, or iron is soft", "Iron."), None);
    let answer = "Whales breathe with lungs and come up to the surface for air";
    assert_eq!(leaked_item(&index, "Tell me: Which of these is true?", answer), Some(0));
    assert_eq!(leaked_item(&index, "WHICH OF THESE IS TRUE", "I do not know."), Some(0), "nothing else is asked");
    assert_eq!(leaked_item(&index, "Which of these woods floats?", "Wood"), Some(2), "a copy is no second item");
}

#[test]
fn a_general_question_is_told_by_its_choices_in_any_order() {
    let mut builder = IndexBuilder::new(13);
    builder.add(&BenchmarkText {
        source: "planted.jsonl".into(),
        index: 7,
        question: "Which of the following is true?".into(),
        answer: Some("Cork floats".into()),
        choices: ["Cork floats", "Iron floats", "Lead is light", "Gold rusts"].map(str::to_owned).to_vec(),
    });
    let index = builder.build();
    let ask = |choices: &str| format!("Answer this. Which of the following is true?\n{choices}");
    let shuffled = ask("A. Gold rusts\nB. cork floats\nC. Lead is light\nD. Iron floats");
    assert_eq!(leaked_item(&index, &shuffled, "B"), Some(7));
    assert_eq!(leaked_item(&index, &ask("A. Snow is warm\nB. Ice floats\nC. Gold rusts"), "B"), None);
}

#[test]
fn signs_at_the_ends_of_a_formula_count() {
    let index = index(&[("((-1 + 2 + 9 * 5) - (-2 + -4)) =", None)]);
    let found = |text: &str| leaked_item(&index, &format!("Work this out with me. {text}\nThank you."), "");
    assert_eq!(found("((-1 + 2 + 9 * 5) - (-2 + -4)) ="), Some(0));
    for other in [
        "((6 + 2 + 9 * 5) - (-2 + -4)) =",
        "((-1 - 2 + 9 * 5) - (-2 + -4)) =",
        "7 * ((-1 + 2 + 9 * 5) - (-2 + -4)) * 2",
    ] {
        assert_eq!(found(other), None, "{other}");
    }
}

#[test]
fn evidence_quotes_the_shared_words() {
    let index = index(&[(LONG, None)]);
    let leak = find(&index, &format!("Riddle. {LONG}"), "").expect("a leak");
    assert!(leak.span.starts_with("natalia sold clips to 48 of her friends in april and"), "{leak}");
    assert!(!leak.span.contains("riddle") && !leak.other_numbers, "{leak}");
}
