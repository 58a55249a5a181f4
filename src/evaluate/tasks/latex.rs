//! Are two expressions in LaTeX worth the same?
//!
//! lm-evaluation-harness asks sympy: an answer that sympy's grammar cannot read is wrong even if it is written like the
//! reference, and an answer counts when the difference of the two simplifies to zero. Here the same grammar is read,
//! with its habits (the longest part that makes sense counts, the rest is ignored; letters next to each other are a
//! product; `\pi` is a letter like any other), and the two are compared by value at several points with complex numbers
//! for their letters. The two ways differ where sympy fails to simplify a difference that is zero (wrong there, right
//! here), gives up after five seconds, or reads integrals, sums and limits (not read here).

mod complex;
mod parse;
mod value;

use super::{math, minerva};

/// Points at which expressions are compared.
const POINTS: u64 = 4;

/// Whether two expressions can be read and have the same value everywhere. Equations and inequalities have none.
pub fn is_equivalent(first: &str, second: &str) -> bool {
    let (Some(first), Some(second)) = (parse::expression(first), parse::expression(second)) else { return false };
    (0..POINTS).all(|point| value::are_close(value::at(&first, point), value::at(&second, point)))
}

/// Whether a free answer holds the answer of a solution.
///
/// Stands for the library math-verify: it takes the answer that "Final Answer" states, else the last box, else what
/// "answer is" leads to, else the last expression in dollar signs, else the last number, and compares by form and by
/// value, lists and intervals part by part.
pub fn verify(solution: &str, response: &str) -> bool {
    match (extracted(solution), extracted(response)) {
        (Some(gold), Some(answer)) => is_same_answer(&gold, &answer),
        _ => false,
    }
}

fn extracted(text: &str) -> Option<String> {
    if let Some((_, rest)) = text.rsplit_once("The final answer is") {
        return Some(stated(rest));
    }
    if let Ok(answer) = math::boxed_answer(text) {
        return Some(answer);
    }
    if let Some((_, rest)) = text.rsplit_once("answer is") {
        return Some(stated(rest));
    }
    let parts: Vec<&str> = text.split('$').collect();
    let pairs = (parts.len() - 1) / 2;
    if pairs > 0 {
        return Some(parts[2 * pairs - 1].to_owned());
    }
    let is_part = |it: char| it.is_ascii_digit() || matches!(it, '.' | ',' | '-' | '/');
    let numbers = text.split(|it: char| !is_part(it)).map(|number| number.trim_end_matches(['.', ',', '-', '/']));
    numbers.rev().find(|number| number.contains(|it: char| it.is_ascii_digit())).map(str::to_owned)
}

/// What stands between dollar signs after a lead, else the rest of the line.
fn stated(rest: &str) -> String {
    let line = rest.lines().next().unwrap_or_default();
    if let Ok(answer) = math::boxed_answer(line) {
        return answer;
    }
    let mut parts = line.split('$');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(inside), Some(_)) => inside.to_owned(),
        _ => line.trim_start_matches([':', ' ']).trim_end_matches(['.', ' ']).to_owned(),
    }
}

fn is_same_answer(gold: &str, answer: &str) -> bool {
    let stripped = |text: &str| math::strip_string(text).unwrap_or_else(|_| text.to_owned());
    let (gold, answer) = (stripped(gold), stripped(answer));
    if gold == answer {
        return !gold.is_empty();
    }
    let (gold_parts, answer_parts) = (parts(&gold), parts(&answer));
    if gold_parts.len() > 1 || answer_parts.len() > 1 {
        return brackets(&gold) == brackets(&answer)
            && gold_parts.len() == answer_parts.len()
            && gold_parts.iter().zip(&answer_parts).all(|(gold, answer)| is_same_answer(gold, answer));
    }
    is_equivalent(&minerva::normalise(&gold), &minerva::normalise(&answer))
}

/// The opening and closing bracket around a list, if both are there.
fn brackets(text: &str) -> Option<(char, char)> {
    let (first, last) = (text.chars().next()?, text.chars().last()?);
    ("([".contains(first) && ")]".contains(last)).then_some((first, last))
}

/// The parts of a list, split at the commas that are in no bracket of their own; thousands separators are no commas.
fn parts(text: &str) -> Vec<&str> {
    let inner = if brackets(text).is_some() { &text[1..text.len() - 1] } else { text };
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (index, character) in inner.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 && !separates_thousands(inner, index) => {
                parts.push(&inner[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    // Brackets that enclose less than the whole enclose no list.
    if depth == 0 { parts } else { vec![text] }
}

fn separates_thousands(text: &str, comma: usize) -> bool {
    let (before, after) = (&text.as_bytes()[..comma], &text.as_bytes()[comma + 1..]);
    before.last().is_some_and(u8::is_ascii_digit)
        && after.len() >= 3
        && after[..3].iter().all(u8::is_ascii_digit)
        && !after.get(3).is_some_and(u8::is_ascii_digit)
        && !text.contains(['(', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_equivalent_whatever_their_form() {
        for (first, second) in [
            ("\\frac{1}{2}", "0.5"),
            ("2x+3", "3+x\\cdot2"),
            ("(x+1)^2", "x^2+2x+1"),
            ("\\sqrt{8}", "2\\sqrt{2}"),
            ("Evelyn", "Evelyn"),
            ("10000", "10,000"),
            ("\\sin^2x+\\cos^2x", "1"),
            ("\\sqrt[3]{27}", "3"),
            ("5!", "120"),
        ] {
            assert!(is_equivalent(first, second), "{first} {second}");
        }
    }

    #[test]
    fn other_values_and_what_cannot_be_read_are_not() {
        for (first, second) in [
            ("p-q", "q-p"),
            ("\\sqrt{x^2}", "x"),
            ("\\pi", "3.14159265"),
            ("(3,4)", "(3,4)"),
            ("\\le(3,\\frac{\\pi}{2}\\right)", "\\le(3,\\frac{\\pi}{2}\\right)"),
            ("x<5", "x<5"),
            ("\\infty", "\\infty"),
            ("", ""),
            ("5\\%", "5\\%"),
        ] {
            assert!(!is_equivalent(first, second), "{first} {second}");
        }
    }

    #[test]
    fn the_answer_of_a_solution_is_found_in_a_free_answer() {
        let solution = r"So it is $\boxed{\left( 3, \frac{\pi}{2} \right)}.$";
        assert!(verify(solution, r"Final Answer: The final answer is $(3,\pi/2)$. I hope it is correct."));
        assert!(!verify(solution, r"Final Answer: The final answer is $[3,\pi/2]$. I hope it is correct."));
        assert!(verify(r"\boxed{42}", "It makes 42."));
        assert!(verify(r"\boxed{42}", r"The answer is $\boxed{42}$."));
        assert!(!verify(r"\boxed{42}", "It makes 7."));
        assert!(!verify(r"\boxed{42}", "Who knows?"));
    }
}
