//! From what was typed (a file, `--set` overrides) to what is meant (a checked [`Config`]).

use std::{fs, path::Path};

use anyhow::{Context, Result};
use toml::{Table, Value, de::DeTable};

use super::{Config, keys};
use crate::error::usage;

/// Reads a configuration file (none: the defaults), applies `--set key=value` overrides and checks every range.
///
/// Relative paths in it are relative to the current directory, not to the file.
///
/// **Errors**: usage; they name the file and line or the override, and the nearest existing key.
pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Config> {
    let known = Config::default().to_table().context("the default configuration")?;
    let mut table = known.clone();
    if let Some(path) = file {
        let text = fs::read_to_string(path)
            .map_err(|error| usage(format!("cannot read the configuration file `{}`: {error}", path.display())))?;
        merge(&mut table, parse_file(&path.display().to_string(), &text, &known)?);
    }
    for text in overrides {
        apply_override(&mut table, text, &known)?;
    }
    let config: Config =
        Value::Table(table).try_into().map_err(|error| usage(format!("the configuration does not fit: {error}")))?;
    config.validate().map_err(|error| match file {
        Some(path) => usage(format!("configuration `{}`: {error:#}", path.display())),
        None => usage(format!("configuration: {error:#}")),
    })?;
    Ok(config)
}

/// Parses and checks one file by itself, so that every message can name a line.
fn parse_file(name: &str, text: &str, known: &Table) -> Result<Table> {
    let at = |offset: usize| format!("`{name}` line {}", line_number(text, offset));
    let place = |error: &toml::de::Error| error.span().map_or_else(|| format!("`{name}`"), |span| at(span.start));
    let parsed =
        DeTable::parse(text).map_err(|error| usage(format!("{}: {}", place(&error), in_plain_words(&error))))?;
    let errors = keys::check_keys(parsed.get_ref(), known);
    if !errors.is_empty() {
        let lines: Vec<_> = errors.iter().map(|error| format!("{}: {}", at(error.offset), error.message)).collect();
        return Err(usage(lines.join("\n")));
    }
    let wrong_type = |error: toml::de::Error| {
        let key = error.span().and_then(|span| keys::key_at(parsed.get_ref(), span.start));
        let key = key.map_or_else(String::new, |key| format!("`{key}`: "));
        usage(format!("{}: {key}{}", place(&error), in_plain_words(&error)))
    };
    // For the types alone: the defaults of missing keys come from `merge`, which also fills tables within tables.
    toml::from_str::<Config>(text).map_err(wrong_type)?;
    toml::from_str(text).map_err(wrong_type)
}

/// The message of the TOML reader, on one line and without the names of Rust's types.
fn in_plain_words(error: &toml::de::Error) -> String {
    let message = error.message().trim_end_matches('.').replace('\n', ", ");
    let words = [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list, such as [\"a\", \"b\"]"),
    ];
    match words.iter().find(|(rust, _)| message.ends_with(rust)) {
        Some((rust, plain)) => message.replace(rust, plain),
        None => message,
    }
}

/// 1-based.
fn line_number(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// Lays `over` on `base`, table by table: a key that `over` leaves out keeps its value.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies one `table.key=value`.
fn apply_override(table: &mut Table, text: &str, known: &Table) -> Result<()> {
    let wrong = |message: String| usage(format!("`--set {text}`: {message}"));
    let (key, value) =
        text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE, such as `train.learning_rate=1e-4`".into()))?;
    let path: Vec<String> = key.trim().split('.').map(|part| part.trim().to_owned()).collect();
    let default = keys::find(known, &path).map_err(&wrong)?;
    let value = override_value(value.trim(), default);

    // Tried on its own first, so that a wrong type is blamed on the override that has it.
    let mut alone = value;
    for key in path.iter().rev() {
        alone = Value::Table(Table::from_iter([(key.clone(), alone)]));
    }
    alone
        .clone()
        .try_into::<Config>()
        .map_err(|error| wrong(format!("{} (the default is `{default}`)", in_plain_words(&error))))?;
    if let Value::Table(alone) = alone {
        merge(table, alone);
    }
    Ok(())
}

/// Reads the value of an override: TOML where that fits the key, else the text itself (a shell eats quotes); a list key
/// also takes `a,b`.
fn override_value(text: &str, default: &Value) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    match (default, parsed) {
        (Value::String(_), Some(value @ Value::String(_))) => value,
        (Value::String(_), _) => Value::String(text.to_owned()),
        (Value::Array(_), Some(value @ Value::Array(_))) => value,
        (Value::Array(_), Some(value @ Value::String(_))) => Value::Array(vec![value]),
        (Value::Array(_), _) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        }
        (_, Some(value)) => value,
        (_, None) => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{LrSchedule, TrainInit},
        error,
    };

    fn load_text(text: &str, overrides: &[&str]) -> Result<Config> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("run.toml");
        fs::write(&path, text)?;
        load(Some(&path), &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn message(text: &str, overrides: &[&str]) -> String {
        let error = load_text(text, overrides).expect_err("the configuration is wrong");
        assert_eq!(error::exit_code(&error), 2, "{error:#}");
        format!("{error:#}")
    }

    #[test]
    fn an_empty_file_and_no_file_are_the_defaults() -> Result<()> {
        assert_eq!(load_text("", &[])?, Config::default());
        assert_eq!(load(None, &[])?, Config::default());
        Ok(())
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
        let message = message("seed = 1\n\n[train]\nlearning_rat = 1e-3\n[generate.subject]\ntop_p = 1.0\n", &[]);
        assert!(message.contains("run.toml` line 4: unknown key `train.learning_rat`"), "{message}");
        assert!(message.contains("did you mean `train.learning_rate`?"), "{message}");
        assert!(
            message.contains("line 5: unknown key `generate.subject`; did you mean `generate.subjects`?"),
            "{message}"
        );
    }

    #[test]
    fn broken_toml_and_wrong_types_name_the_line() {
        assert!(message("seed = 1\nseed = 2\n", &[]).contains("line 2"));
        assert!(message("seed = 1\n[train\n", &[]).contains("line 2"));
        let wrong = message("[train]\n\nlearning_rate = \"fast\"\n", &[]);
        assert!(wrong.contains("line 3: `train.learning_rate`") && wrong.contains("expected a number"), "{wrong}");
        let wrong = message("train.max_steps = 1\ngenerate.answer = { top_p = 1, top_k = 2.5 }\n", &[]);
        assert!(wrong.contains("line 2: `generate.answer.top_k`") && wrong.contains("a whole number"), "{wrong}");
        let wrong = message("[train]\nmethod = \"magic\"\n", &[]);
        assert!(wrong.contains("line 2") && wrong.contains("`full`"), "{wrong}");
        assert!(message("seed = -1\n", &[]).contains("line 1"));
        assert!(message("train = 3\n", &[]).contains("`train` is a table"));
        assert!(message("[seed]\na = 3\n", &[]).contains("`seed` is a key, not a table"));
    }

    #[test]
    fn a_missing_file_is_a_usage_error() {
        let error = load(Some(Path::new("no/such/file.toml")), &[]).expect_err("there is no such file");
        assert_eq!(error::exit_code(&error), 2);
        assert!(format!("{error:#}").contains("no/such/file.toml"));
    }

    #[test]
    fn overrides_win_over_the_file_and_the_last_one_wins() -> Result<()> {
        let config = load_text(
            "seed = 1\n[train]\nlearning_rate = 1e-3\n",
            &[
                "train.learning_rate=1",
                "train.learning_rate=2e-4",
                "seed=7",
                "teacher.model=org/name",
                "train.init=random",
            ],
        )?;
        assert_eq!((config.seed, config.train.learning_rate), (7, 2e-4));
        assert_eq!(config.teacher.model, "org/name");
        assert_eq!(config.train.init, TrainInit::Random);
        Ok(())
    }

    #[test]
    fn overrides_take_text_numbers_as_text_and_lists_in_both_forms() -> Result<()> {
        for (text, tasks) in [
            ("evaluate.tasks=[\"a\", \"b\"]", vec!["a", "b"]),
            ("evaluate.tasks=a,b", vec!["a", "b"]),
            ("evaluate.tasks=a", vec!["a"]),
            ("evaluate.tasks=\"a\"", vec!["a"]),
        ] {
            assert_eq!(load(None, &[text.to_owned()])?.evaluate.tasks, tasks, "{text}");
        }
        let config = load(None, &["student.model=123".into(), "curate.answer_pattern=a=b".into()])?;
        assert_eq!(config.student.model, "123");
        assert_eq!(config.curate.answer_pattern, "a=b");
        assert_eq!(load(None, &["generate.prompts=".into()])?.generate.prompts, PathBuf::new());
        Ok(())
    }

    #[test]
    fn a_wrong_override_is_named() {
        for (text, expected) in [
            ("train.learning_rate", "expected KEY=VALUE"),
            ("train.learning_rat=1", "did you mean `train.learning_rate`?"),
            ("learning_rate=1", "did you mean `train.learning_rate`?"),
            ("train=1", "`train` is a table"),
            ("train.max_steps=1.5", "--set train.max_steps=1.5"),
            ("train.max_steps=many", "the default is `0`"),
            ("device=toaster", "unknown variant `toaster`"),
            ("=1", "unknown key"),
        ] {
            let message = message("", &[text]);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn a_table_within_a_table_keeps_the_defaults_that_it_leaves_out() -> Result<()> {
        let config = load_text("[generate.subjects]\ntemperature = 0.5\n", &["generate.answer.top_p=0.5"])?;
        assert_eq!(config.generate.subjects.temperature, 0.5);
        assert_eq!(config.generate.subjects.max_new_tokens, Config::default().generate.subjects.max_new_tokens);
        assert_eq!(config.generate.answer.temperature, Config::default().generate.answer.temperature);
        Ok(())
    }

    #[test]
    fn every_shipped_configuration_is_valid() -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut checked = 0;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".toml") && !name.ends_with("taxonomy.toml") {
                let config = load(Some(&path), &[])?;
                assert!(!config.teacher.model.is_empty() && !config.student.model.is_empty(), "{name} names no models");
                checked += 1;
            }
        }
        assert!(checked >= 4, "only {checked} configurations in `{}`", folder.display());
        Ok(())
    }

    proptest! {
        #[test]
        fn a_configuration_comes_back_from_its_toml(
            seed in 0..=i64::MAX as u64,
            model in "\\PC{0,20}",
            pattern in "[a-z \"'\\\\\n\t=#]{0,12}",
            temperature in 0f32..5.0,
            top_p in f32::EPSILON..=1.0,
            learning_rate in f64::MIN_POSITIVE..1.0,
            rate in 0f64..=0.5,
            tasks in proptest::collection::vec("\\PC{1,8}", 1..4),
            size in 1..=1usize << 40,
        ) {
            let mut config = Config { seed, ..Config::default() };
            config.teacher.model = model;
            config.curate.answer_pattern = regex::escape(&pattern);
            config.curate.test_fraction = rate;
            config.generate.question.temperature = temperature;
            config.generate.question.top_p = top_p;
            config.generate.num_questions = size;
            config.train.learning_rate = learning_rate;
            config.train.lr_scheduler_type = LrSchedule::Linear;
            config.evaluate.tasks = tasks;
            config.evaluate.data_dir = PathBuf::from(pattern);
            let text = config.to_toml().expect("every value fits TOML");
            let back = load_text(&text, &[]).expect("a resolved configuration can be fed back");
            prop_assert_eq!(&back, &config);
            prop_assert_eq!(back.to_toml().expect("as above"), text);
        }
    }
}
