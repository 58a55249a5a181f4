//! What the judge reads, and what is read out of what it writes.

use std::{path::Path, sync::LazyLock};

use anyhow::{Context as _, Result};
use fancy_regex::Regex;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use crate::{error::usage, evaluate::tasks::filters::constant};

/// The built-in template. The paper names the criteria and the scale and prints no prompt; this one is ours.
const BUILT_IN: &str = include_str!("template.jinja");
const NAME: &str = "judge";

/// The prompt of a comparison.
pub struct JudgePrompt {
    environment: Environment<'static>,
    /// The template's text.
    pub source: String,
}

impl JudgePrompt {
    /// Reads a template file; an empty path is the built-in one.
    ///
    /// **Errors**: usage, for a file that cannot be read, does not compile, or leaves out one of the three texts.
    pub fn load(path: &Path) -> Result<Self> {
        let source = if path.as_os_str().is_empty() {
            BUILT_IN.to_owned()
        } else {
            std::fs::read_to_string(path).map_err(|error| {
                usage(format!(
                    "cannot read the judge's template `{}`: {error}; set `evaluate.judge.template`",
                    path.display()
                ))
            })?
        };
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let wrong =
            |error: &dyn std::fmt::Display| usage(format!("the judge's template `{}`: {error}", path.display()));
        environment.add_template_owned(NAME, source.clone()).map_err(|error| wrong(&error))?;
        let prompt = Self { environment, source };
        let example = prompt.render("QUESTION", "FIRST", "SECOND").map_err(|error| wrong(&format!("{error:#}")))?;
        for (text, variable) in [("QUESTION", "question"), ("FIRST", "answer_1"), ("SECOND", "answer_2")] {
            if !example.contains(text) {
                return Err(wrong(&format!("it does not show `{{{{ {variable} }}}}`")));
            }
        }
        Ok(prompt)
    }

    /// The prompt for one question and two answers in this order.
    pub fn render(&self, question: &str, answer_1: &str, answer_2: &str) -> Result<String> {
        let template = self.environment.get_template(NAME).context("the judge's template was compiled")?;
        let text = template.render(context! { question, answer_1, answer_2 })?;
        Ok(text.trim_end().to_owned())
    }
}

/// Scores are numbers of this range, as the prompt asks.
const RANGE: std::ops::RangeInclusive<f64> = 1.0..=10.0;

/// A line of two numbers and nothing else but marks: "8 7", "**8/10**, 7.5/10", "[[8, 7]]".
static BARE_LINE: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"(?m)^[\s\*\[\(`#>\-]*(\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s\*\]\),;:|&\[\(]+(\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s\*\]\)`\.]*$",
    )
});

/// A score with its owner: "Assistant 1: 8", "**Assistant 1's score:** 8/10", "\"answer_1\": 8", "Score A = 8".
static LABELLED: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r#"(?i)\b(?:assistant|answer|response|model|score|rating)[\s_#]*([12ab])\b['’"]?s?[\s"]*(?:(?:answer|overall|final|score|rating|gets|is)[\s"]*)*[\*\]\)]*\s*[:=\-]?[\s\*\[\("]*(\d+(?:\.\d+)?)(?![\d\.]*\d)"#,
    )
});

/// The scores of the first and the second answer; `None` where the judge gave none that can be told.
///
/// Looked for in this order: the first line that is not empty, if it is two numbers; scores with their owners named, the
/// last of each; any line of two numbers. What stands before a closing `</think>` is not part of the verdict.
pub fn scores(verdict: &str) -> Option<[f64; 2]> {
    let text = verdict.rsplit_once("</think>").map_or(verdict, |(_, after)| after).trim();
    let first_line = text.lines().next().unwrap_or_default();
    bare(first_line).or_else(|| labelled(text)).or_else(|| bare(text))
}

fn bare(text: &str) -> Option<[f64; 2]> {
    let found = BARE_LINE.captures(text).ok().flatten()?;
    in_range([found.get(1)?.as_str(), found.get(2)?.as_str()])
}

fn labelled(text: &str) -> Option<[f64; 2]> {
    let mut found = [None, None];
    for captures in LABELLED.captures_iter(text).map_while(Result::ok) {
        let (owner, score) = (captures.get(1)?.as_str(), captures.get(2)?.as_str());
        found[usize::from(matches!(owner, "2" | "b" | "B"))] = Some(score);
    }
    in_range([found[0]?, found[1]?])
}

fn in_range(scores: [&str; 2]) -> Option<[f64; 2]> {
    let [first, second] = scores.map(|score| score.parse::<f64>().ok().filter(|score| RANGE.contains(score)));
    Some([first?, second?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_found_in_the_forms_that_judges_write() {
        for (verdict, expected) in [
            ("8 7\nThe first is better.", [8.0, 7.0]),
            ("\n  **8** **7.5**  \nBecause 1 and 2.", [8.0, 7.5]),
            ("8/10, 7/10", [8.0, 7.0]),
            ("[[10, 1]]", [10.0, 1.0]),
            ("9, 9.", [9.0, 9.0]),
            ("Assistant 1: 8\nAssistant 2: 6", [8.0, 6.0]),
            ("**Assistant 1's score:** 8/10\n**Assistant 2's score:** 6/10", [8.0, 6.0]),
            ("Assistant 2: 6, Assistant 1: 8", [8.0, 6.0]),
            ("{\"answer_1\": 3, \"answer_2\": 4}", [3.0, 4.0]),
            ("Score A = 3; Score B = 10", [3.0, 10.0]),
            ("Assistant 1 gets 5 and assistant 2 gets 6.", [5.0, 6.0]),
            ("Assistant 1: 2, assistant 2: 3. On reflection: Assistant 1: 4, assistant 2: 5.", [4.0, 5.0]),
            ("Both are good.\n7 8\nThe end.", [7.0, 8.0]),
            ("<think>perhaps\n1 2\n</think>\n5 6", [5.0, 6.0]),
            ("Assistant 1: 10\nAssistant 2: 10", [10.0, 10.0]),
        ] {
            assert_eq!(scores(verdict), Some(expected), "{verdict}");
        }
    }

    #[test]
    fn what_is_no_verdict_is_none() {
        for verdict in [
            "",
            "The first answer is better.",
            "8",
            "11 7",
            "0 5",
            "80 70",
            "Assistant 1: 8",
            "Assistant 1: 8, assistant 2: 12",
            "1 2 3",
            "In 2019 there were 12 answers.",
            "<think>8 7</think>",
        ] {
            assert_eq!(scores(verdict), None, "{verdict}");
        }
    }

    #[test]
    fn a_template_must_show_all_three_texts() -> Result<()> {
        let rendered = JudgePrompt::load(Path::new(""))?.render("Why {{ x }}?", "<b>", "second")?;
        assert!(rendered.contains("Why {{ x }}?") && rendered.contains("<b>"), "{rendered}");
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("judge.jinja");
        for (source, named) in [
            ("{{ question }} {{ answer_1 }}", "answer_2"),
            ("{{ question }} {{ answer_1 }} {{ answer_2 }} {{ reference }}", "undefined"),
            ("{% if %}", "judge.jinja"),
        ] {
            std::fs::write(&path, source)?;
            let error = JudgePrompt::load(&path).err().expect("the template is wrong");
            assert!(format!("{error:#}").contains(named), "{error:#}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
        assert!(JudgePrompt::load(&folder.path().join("nowhere")).is_err());
        Ok(())
    }
}
