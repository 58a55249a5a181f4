//! Conditions on the columns that curation measures of every row.

/// The columns, in the order of the file.
pub const COLUMNS: [&str; 14] = [
    "question_chars",
    "answer_chars",
    "refusal",
    "truncated",
    "repetition",
    "prompt_leak",
    "script_agreement",
    "english",
    "arithmetic_checked",
    "arithmetic_wrong",
    "toxic_words",
    "agreement",
    "judge_score",
    "ifd",
];

/// A condition on a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    column: &'static str,
    comparison: &'static str,
    limit: f64,
}

impl Threshold {
    /// Reads `COLUMN <= NUMBER` (or `<`, `>=`, `>`).
    ///
    /// **Errors**: what is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (comparison, place) = ["<=", ">=", "<", ">"]
            .into_iter()
            .find_map(|comparison| Some((comparison, text.find(comparison)?)))
            .ok_or_else(|| format!("`{text}` compares nothing; write COLUMN <= NUMBER (or <, >=, >)"))?;
        let (name, limit) = (text[..place].trim(), text[place + comparison.len()..].trim());
        let column = COLUMNS
            .into_iter()
            .find(|column| *column == name)
            .ok_or_else(|| format!("`{name}` is no column; there are {}", COLUMNS.join(", ")))?;
        let limit: f64 = limit.parse().map_err(|_| format!("`{limit}` in `{text}` is not a number"))?;
        if !limit.is_finite() {
            return Err(format!("`{limit}` in `{text}` is not a finite number"));
        }
        Ok(Self { column, comparison, limit })
    }

    /// What a row breaks, whose columns `value_of` knows; `None` when it passes.
    pub fn check(&self, value_of: impl Fn(&str) -> Option<f64>) -> Option<String> {
        let value = value_of(self.column)?;
        let passes = match self.comparison {
            "<=" => value <= self.limit,
            ">=" => value >= self.limit,
            "<" => value < self.limit,
            _ => value > self.limit,
        };
        (!passes).then(|| format!("{} is {value}, asked for {} {}", self.column, self.comparison, self.limit))
    }
}
