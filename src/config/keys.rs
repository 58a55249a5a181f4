//! Which keys exist, and which of them somebody meant.

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

/// A key that does not exist, or a table and a plain value taken for each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyError {
    /// Byte offset of the key in the file.
    pub offset: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Every wrong key of a parsed file. `known` is the default configuration's table.
pub(super) fn check_keys(parsed: &DeTable, known: &Table) -> Vec<KeyError> {
    let mut errors = Vec::new();
    check_table(parsed, known, known, &mut Vec::new(), &mut errors);
    errors
}

fn check_table(given: &DeTable, known: &Table, root: &Table, path: &mut Vec<String>, errors: &mut Vec<KeyError>) {
    for (key, value) in given {
        path.push(key.get_ref().to_string());
        let wrong = match (known.get(key.get_ref().as_ref()), value.get_ref()) {
            (None, _) => Some(unknown_key(path, root)),
            (Some(Value::Table(inner)), DeValue::Table(given)) => {
                check_table(given, inner, root, path, errors);
                None
            }
            (Some(Value::Table(_)), _) => Some(is_a_table(path)),
            (Some(_), DeValue::Table(_)) => Some(format!("`{}` is a key, not a table", path.join("."))),
            (Some(_), _) => None,
        };
        if let Some(message) = wrong {
            errors.push(KeyError { offset: key.span().start, message });
        }
        path.pop();
    }
}

/// The dotted key whose value stands at a byte offset of the file.
pub(super) fn key_at(parsed: &DeTable, offset: usize) -> Option<String> {
    parsed.iter().find_map(|(key, value)| match value.get_ref() {
        DeValue::Table(inner) => key_at(inner, offset).map(|rest| format!("{}.{rest}", key.get_ref())),
        _ => value.span().contains(&offset).then(|| key.get_ref().to_string()),
    })
}

/// The default value of a dotted key.
///
/// **Errors**: the message for a key that does not exist or names a table.
pub(super) fn find<'a>(root: &'a Table, path: &[String]) -> Result<&'a Value, String> {
    let mut table = root;
    for (depth, key) in path.iter().enumerate() {
        match table.get(key) {
            Some(Value::Table(inner)) if depth + 1 < path.len() => table = inner,
            Some(Value::Table(_)) => return Err(is_a_table(path)),
            Some(value) if depth + 1 == path.len() => return Ok(value),
            Some(_) => return Err(format!("`{}` is a key, not a table", path[..=depth].join("."))),
            None => return Err(unknown_key(path, root)),
        }
    }
    Err("a key is missing before `=`".to_owned())
}

fn is_a_table(path: &[String]) -> String {
    let path = path.join(".");
    format!("`{path}` is a table; set one of its keys, such as `{path}.KEY = value`")
}

/// Says that a key does not exist, and names the nearest one: in the same table by spelling, else in any table by name.
fn unknown_key(path: &[String], root: &Table) -> String {
    let (key, tables) = path.split_last().expect("a path has at least one key");
    let mut siblings = root;
    for (depth, name) in tables.iter().enumerate() {
        match siblings.get(name) {
            Some(Value::Table(inner)) => siblings = inner,
            // The table itself does not exist: that is what the user should hear of.
            _ => return unknown_key(&path[..=depth], root),
        }
    }
    let dotted = |key: &str| tables.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
    let nearest = siblings.keys().min_by_key(|sibling| edit_distance(key, sibling));
    let close = nearest.filter(|nearest| edit_distance(key, nearest) <= (key.chars().count() / 3).max(2));
    let hint = match (close, elsewhere(key, root, "").as_slice()) {
        (Some(nearest), _) => format!("did you mean `{}`?", dotted(nearest)),
        (None, []) => {
            format!("the keys here are {}", siblings.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
        (None, found) => format!("did you mean `{}`?", found.join("` or `")),
    };
    format!("unknown key `{}`; {hint}", path.join("."))
}

/// Dotted names of all keys called `key`.
fn elsewhere(key: &str, table: &Table, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in table {
        if name == key {
            found.push(format!("{prefix}{name}"));
        }
        if let Value::Table(inner) = value {
            found.extend(elsewhere(key, inner, &format!("{prefix}{name}.")));
        }
    }
    found
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut current = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let substitution = previous[j] + usize::from(left != *right);
            current.push(substitution.min(previous[j + 1] + 1).min(current[j] + 1));
        }
        previous = current;
    }
    previous[b.len()]
}

/// Flattens a table to dotted keys and their values, in order.
pub(super) fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut rows = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                rows.extend(flatten(inner).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            _ => rows.push((name.clone(), value.clone())),
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_insertions_deletions_and_substitutions() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("seed", "seed"), 0);
    }

    #[test]
    fn a_key_in_the_wrong_table_is_found_by_its_name() -> anyhow::Result<()> {
        let known: Table = toml::from_str("seed = 0\n[train]\nlearning_rate = 1.0\n[report]\nnum_samples = 1")?;
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let message = find(&known, &path("report.learning_rate")).expect_err("report has no learning rate");
        assert!(message.contains("did you mean `train.learning_rate`?"), "{message}");
        let message = find(&known, &path("trian.learning_rate")).expect_err("no such table");
        assert!(message.contains("unknown key `trian`; did you mean `train`?"), "{message}");
        let message = find(&known, &path("train.zzzzzzzz")).expect_err("nothing is near");
        assert!(message.contains("the keys here are learning_rate"), "{message}");
        assert!(find(&known, &path("train")).expect_err("a table").contains("is a table"));
        assert!(find(&known, &path("seed.x")).expect_err("not a table").contains("`seed` is a key, not a table"));
        Ok(())
    }
}
