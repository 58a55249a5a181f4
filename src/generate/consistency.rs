//! Self-consistency (Wang et al. 2022, arXiv 2203.11171): of several answers to a question the one stays whose result most of
//! them come to, and the share of those is kept as `agreement`. Wrong majorities survive; a low share tells a question
//! that is hard or unclear.

use super::text::normalized_name;

/// Of several answers: which one stays (the first that has the commonest result; of results equally common the one that came first), and
/// the share of answers with its result. `None` with fewer than two answers, where there is nothing to compare.
pub fn choose(answers: &[&str]) -> (usize, Option<f64>) {
    let results: Vec<String> = answers.iter().map(|answer| result(answer)).collect();
    let votes = |index: usize| results.iter().filter(|other| **other == results[index]).count();
    let most = (0..answers.len()).map(votes).max().unwrap_or(0);
    let chosen = (0..answers.len()).find(|&index| votes(index) == most).unwrap_or(0);
    (chosen, (answers.len() >= 2).then(|| most as f64 / answers.len() as f64))
}

/// What an answer comes to: behind the last `####`, in the last `\boxed{}`, behind the last "the answer is", its last number,
/// or else all its words.
fn result(answer: &str) -> String {
    let boxed = answer.rsplit_once("\\boxed{").and_then(|(_, tail)| Some(tail.rsplit_once('}')?.0));
    let hashes = answer.rsplit_once("####").map(|(_, tail)| tail);
    let lower = answer.to_lowercase();
    let said = lower
        .rsplit_once("the answer is")
        .map(|(_, tail)| tail.split(['\n', ';']).next().unwrap_or_default())
        .map(|tail| tail.split(". ").next().unwrap_or_default());
    if let Some(result) = hashes.or(boxed).or(said)
        && !key(result).is_empty()
    {
        return number(result).unwrap_or_else(|| key(result));
    }
    number(answer).unwrap_or_else(|| key(answer))
}

/// Letters, digits and the signs of numbers, whatever stands between them; names in one spelling.
fn key(text: &str) -> String {
    let key = normalized_name(text);
    if key.is_empty() { text.split_whitespace().collect() } else { key }
}

/// The last number in a text: thousands separators and trailing zeros do not count.
fn number(text: &str) -> Option<String> {
    let is_part = |char: char| char.is_ascii_digit() || char == '.' || char == ',';
    let mut words = text.split(|char: char| !is_part(char)).map(|word| word.trim_matches(['.', ',']));
    let last = words.rfind(|word| word.starts_with(|char: char| char.is_ascii_digit()))?;
    let before = text[..text.rfind(last)?].strip_suffix('-');
    // In "10-7" the sign is a minus between two numbers.
    let sign = if before.is_some_and(|before| !before.ends_with(char::is_alphanumeric)) { "-" } else { "" };
    let plain = last.replace(',', "");
    let short = if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.') } else { &plain };
    Some(format!("{sign}{short}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_found_however_they_are_written() {
        for (answer, expected) in [
            ("2 + 2 = 4, so it is #### 4", "4"),
            ("So \\boxed{1,200} it is, since 5", "1200"),
            ("It rains. The answer is Paris.", "pari"),
            ("The answer is 12.50. I am sure of all 3.", "12.5"),
            ("First 3, then 8.", "8"),
            ("It falls to -7 degrees.", "-7"),
            ("Because of gravity!", "because of gravity"),
            ("+", "+"),
        ] {
            assert_eq!(result(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_majority_s_first_answer_stays() {
        assert_eq!(choose(&["It is 5.", "So 4.", "2 + 2 = 4", "4.0"]), (1, Some(0.75)));
        assert_eq!(choose(&["a b", "c", "A b."]), (0, Some(2.0 / 3.0)));
        assert_eq!(choose(&["1", "2"]), (0, Some(0.5)), "of two that are even the first");
        assert_eq!(choose(&["1"]), (0, None));
    }
}
