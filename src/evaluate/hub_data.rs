//! Benchmark files out of the Hugging Face cache: what `datasets` or `hf download` put there serves as the files of a data
//! folder.
//!
//! A cache holds `datasets--ORG--NAME/snapshots/REVISION/`, and in a snapshot one Parquet or JSON file or more per
//! configuration and split. [`HUB_FILES`] says which of them stand for which file of a data folder, and how their rows become
//! rows of it. The field names are the hub's, as lm-evaluation-harness reads them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::data;
use crate::{model_dir::HubEnvironment, row_source};

/// A file of a data folder and what stands for it on the hub. In `file` and `splits` a `*` is any name, in both the same.
struct HubFile {
    /// Relative to the data folder.
    file: &'static str,
    /// Data sets, best first.
    repositories: &'static [&'static str],
    /// `CONFIGURATION/SPLIT` as files begin in a snapshot, best first. The files of all splits in one entry, separated by
    /// a space, follow one another.
    splits: &'static [&'static str],
    form: Form,
}

/// What rows become.
#[derive(Clone, Copy)]
enum Form {
    /// JSON lines.
    Rows(fn(Map<String, Value>) -> Result<Value>),
    /// One JSON array.
    Array(fn(Map<String, Value>) -> Result<Value>),
    /// `{"examples": [...]}`.
    Examples,
    /// A line with the number under this key.
    Numbers(&'static str),
}

const HUB_FILES: &[HubFile] = &[
    rows("gsm8k/test.jsonl", &["openai/gsm8k", "gsm8k"], &["main/test"], same),
    rows("gsm8k/train.jsonl", &["openai/gsm8k", "gsm8k"], &["main/train"], same),
    rows("hellaswag/hellaswag_val.jsonl", &["Rowan/hellaswag"], &["data/validation", "default/validation"], same),
    rows("hellaswag/hellaswag_train.jsonl", &["Rowan/hellaswag"], &["data/train", "default/train"], same),
    rows("arc/arc_easy_test.jsonl", &["allenai/ai2_arc"], &["ARC-Easy/test"], arc),
    rows("arc/arc_easy_train.jsonl", &["allenai/ai2_arc"], &["ARC-Easy/train"], arc),
    rows("arc/arc_challenge_test.jsonl", &["allenai/ai2_arc"], &["ARC-Challenge/test"], arc),
    rows("arc/arc_challenge_train.jsonl", &["allenai/ai2_arc"], &["ARC-Challenge/train"], arc),
    rows("winogrande/winogrande_val.jsonl", &["allenai/winogrande", "winogrande"], &["winogrande_xl/validation"], same),
    rows("piqa/valid.jsonl", &["baber/piqa", "ybisk/piqa"], &["data/validation", "plain_text/validation"], same),
    HubFile {
        file: "piqa/valid-labels.lst",
        repositories: &["baber/piqa", "ybisk/piqa"],
        splits: &["data/validation", "plain_text/validation"],
        form: Form::Numbers("label"),
    },
    HubFile {
        file: "truthfulqa/mc_task_v0.json",
        repositories: &["truthfulqa/truthful_qa", "truthful_qa"],
        splits: &["multiple_choice/validation"],
        form: Form::Array(truthfulqa),
    },
    rows("mmlu/test.jsonl", &["cais/mmlu"], &["all/test", "*/test"], same),
    rows("mmlu/dev.jsonl", &["cais/mmlu"], &["all/dev", "*/dev"], same),
    rows("math/test.jsonl", &["EleutherAI/hendrycks_math", "hendrycks/competition_math"], &["*/test"], same),
    rows("math/train.jsonl", &["EleutherAI/hendrycks_math", "hendrycks/competition_math"], &["*/train"], same),
    rows("math/math500_test.jsonl", &["HuggingFaceH4/MATH-500"], &["test", "data/test"], same),
    rows("humaneval/HumanEval.jsonl", &["openai/openai_humaneval"], &["openai_humaneval/test", "data/test"], same),
    rows(
        "mbpp/mbpp.jsonl",
        &["google-research-datasets/mbpp", "mbpp"],
        &["full/prompt full/test full/validation full/train"],
        same,
    ),
    HubFile {
        file: "bbh/bbh/*.json",
        repositories: &["SaylorTwift/bbh", "lukaemon/bbh"],
        splits: &["*/test"],
        form: Form::Examples,
    },
    rows("ifeval/input_data.jsonl", &["google/IFEval"], &["ifeval_input_data", "data/train"], same),
    rows("toxigen/annotated_test.jsonl", &["skg/toxigen-data", "toxigen/toxigen-data"], &["annotated/test"], same),
];

const fn rows(
    file: &'static str,
    repositories: &'static [&'static str],
    splits: &'static [&'static str],
    row: fn(Map<String, Value>) -> Result<Value>,
) -> HubFile {
    HubFile { file, repositories, splits, form: Form::Rows(row) }
}

/// The files of a snapshot that stand for a file of a data folder.
pub struct Found {
    /// In their order; at least one.
    pub files: Vec<PathBuf>,
    form: Form,
}

/// Looks for the data set behind `name` in `data_dir` (a cache, or the folder whose `hub` is one) and in the cache of the
/// process.
pub fn find(data_dir: &Path, name: &str) -> Option<Found> {
    find_in(&caches(data_dir, &HubEnvironment::from_process()), name)
}

/// The data set that would do for `name`, to be named in a message.
pub fn repository(name: &str) -> Option<&'static str> {
    HUB_FILES.iter().find(|entry| filled(entry.file, name).is_some()).map(|entry| entry.repositories[0])
}

fn caches(data_dir: &Path, environment: &HubEnvironment) -> Vec<PathBuf> {
    let mut caches = Vec::new();
    if !data_dir.as_os_str().is_empty() {
        caches.extend([data_dir.to_owned(), data_dir.join("hub")]);
    }
    caches.extend(environment.cache());
    caches
}

fn find_in(caches: &[PathBuf], name: &str) -> Option<Found> {
    let (entry, stem) = HUB_FILES.iter().find_map(|entry| Some((entry, filled(entry.file, name)?)))?;
    let folders = caches.iter().flat_map(|cache| {
        entry.repositories.iter().map(|name| cache.join(format!("datasets--{}", name.replace('/', "--"))))
    });
    folders.flat_map(|folder| snapshots(&folder)).find_map(|snapshot| {
        let files = entry.splits.iter().find_map(|splits| {
            // Every split of an entry has to be there, or rows would be missing unnoticed.
            let each = splits.split(' ').map(|split| split_files(&snapshot, &fill(split, stem, entry.file)));
            each.map(|files| (!files.is_empty()).then_some(files)).collect::<Option<Vec<_>>>()
        })?;
        Some(Found { files: files.concat(), form: entry.form })
    })
}

/// What stands for the `*` of a pattern; nothing in it where it has none.
fn filled<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((before, after)) => name.strip_prefix(before)?.strip_suffix(after).filter(|stem| !stem.is_empty()),
    }
}

/// A split's path: its `*` is that of the file, or any folder where the file has none.
fn fill(split: &str, stem: &str, file: &str) -> String {
    if file.contains('*') { split.replace('*', stem) } else { split.to_owned() }
}

/// The snapshots of a data set, that of `refs/main` first.
fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let main = std::fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
    let mut found = entries(&folder.join("snapshots"));
    found.sort_by_key(|path| path.file_name().is_none_or(|name| name.to_string_lossy() != main.trim()));
    found
}

/// What a folder holds, sorted; nothing when it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// The files of a split: `SPLIT.EXTENSION`, `SPLIT-00000-of-00002.EXTENSION` or `SPLIT/0000.EXTENSION`. One kind of file:
/// Parquet, or else JSON.
fn split_files(snapshot: &Path, split: &str) -> Vec<PathBuf> {
    let (folder, name) = split.rsplit_once('/').unwrap_or(("", split));
    let folders = if folder == "*" {
        entries(snapshot).into_iter().filter(|path| path.is_dir()).collect()
    } else {
        vec![snapshot.join(folder)]
    };
    let is_split = |path: &PathBuf| {
        let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        stem.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', '-']))
    };
    let mut files = Vec::new();
    for folder in folders {
        files.extend(entries(&folder).into_iter().filter(is_split));
        files.extend(entries(&folder.join(name)));
    }
    for extensions in [&[".parquet"][..], &[".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz"]] {
        let is_kind = |path: &&PathBuf| {
            path.is_file() && extensions.iter().any(|extension| path.to_string_lossy().ends_with(extension))
        };
        let kind: Vec<PathBuf> = files.iter().filter(is_kind).cloned().collect();
        if !kind.is_empty() {
            return kind;
        }
    }
    Vec::new()
}

impl Found {
    /// The text of the file that these stand for.
    ///
    /// **Errors**: name the file and the row.
    pub fn text(&self) -> Result<String> {
        let mut made = Vec::new();
        for path in &self.files {
            row_source::for_each_row(path, |place, row| {
                let row = row?;
                let made_of = match self.form {
                    Form::Rows(convert) | Form::Array(convert) => convert(row),
                    Form::Examples => Ok(Value::Object(row)),
                    Form::Numbers(key) => {
                        row.get(key).cloned().with_context(|| format!("expected a number under `{key}`"))
                    }
                };
                made.push(made_of.with_context(|| format!("`{}` {place}", path.display()))?);
                Ok(())
            })?;
        }
        Ok(match self.form {
            Form::Array(_) => Value::Array(made).to_string(),
            Form::Examples => json!({"examples": made}).to_string(),
            Form::Rows(_) | Form::Numbers(_) => made.iter().map(|value| format!("{value}\n")).collect(),
        })
    }
}

fn same(row: Map<String, Value>) -> Result<Value> {
    Ok(Value::Object(row))
}

/// `{question, choices: {text, label}, answerKey}`; labels are letters or numbers.
fn arc(row: Map<String, Value>) -> Result<Value> {
    let row = Value::Object(row);
    let (texts, labels) = (data::strings(&row["choices"], "text")?, data::strings(&row["choices"], "label")?);
    let key = data::string(&row, "answerKey")?;
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer.with_context(|| format!("expected under `answerKey` one of {labels:?}, found `{key}`"))?;
    Ok(json!({"question": row["question"], "choices": texts, "answer": answer}))
}

/// `{question, mc1_targets: {choices, labels}, mc2_targets}`.
fn truthfulqa(row: Map<String, Value>) -> Result<Value> {
    let row = Value::Object(row);
    let targets = |key: &str| -> Result<Value> {
        let choices = data::strings(&row[key], "choices").with_context(|| format!("`{key}`"))?;
        let labels = row[key]["labels"].as_array().with_context(|| format!("expected `labels` under `{key}`"))?;
        if labels.len() != choices.len() {
            bail!("`{key}` has {} choices and {} labels", choices.len(), labels.len());
        }
        Ok(Value::Object(choices.into_iter().zip(labels.iter().cloned()).collect()))
    };
    Ok(json!({
        "question": row["question"], "mc1_targets": targets("mc1_targets")?, "mc2_targets": targets("mc2_targets")?
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with files of one data set.
    fn cache(data_set: &str, files: &[(&str, &str)]) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let data_set = folder.path().join(data_set);
        for (path, text) in files {
            let path = data_set.join(path);
            std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            std::fs::write(path, text)?;
        }
        Ok(folder)
    }

    fn text(cache: &tempfile::TempDir, name: &str) -> Result<String> {
        find_in(&[cache.path().join("nowhere"), cache.path().to_owned()], name).context("not found")?.text()
    }

    #[test]
    fn the_snapshot_of_main_is_read_and_the_parts_of_a_split_follow_one_another() -> Result<()> {
        let row = |question: u32| format!("{{\"question\":\"{question}\",\"answer\":\"#### 1\"}}\n");
        let (old, first, second) = (row(0), row(1), row(2));
        let found = cache(
            "datasets--openai--gsm8k",
            &[
                ("refs/main", "bbb\n"),
                ("snapshots/aaa/main/test-00000-of-00001.jsonl", &old),
                ("snapshots/bbb/main/test-00001-of-00002.jsonl", &second),
                ("snapshots/bbb/main/test-00000-of-00002.jsonl", &first),
                ("snapshots/bbb/main/test.csv", "a,b"),
                ("snapshots/bbb/socratic/test-00000-of-00001.jsonl", &old),
                ("snapshots/ccc/README.md", ""),
            ],
        )?;
        assert_eq!(text(&found, "gsm8k/test.jsonl")?, first + &second);
        assert!(find_in(&[found.path().to_owned()], "gsm8k/train.jsonl").is_none(), "the split is not there");
        assert!(find_in(&[found.path().to_owned()], "unknown/test.jsonl").is_none());
        Ok(())
    }

    #[test]
    fn rows_get_the_form_of_the_data_folder() -> Result<()> {
        let arc_row = r#"{"id":"x","question":"Q","choices":{"text":["a","b"],"label":["1","2"]},"answerKey":"2"}"#;
        let found = cache("datasets--allenai--ai2_arc", &[("snapshots/a/ARC-Easy/test.jsonl", arc_row)])?;
        assert_eq!(
            text(&found, "arc/arc_easy_test.jsonl")?,
            "{\"question\":\"Q\",\"choices\":[\"a\",\"b\"],\"answer\":1}\n"
        );

        let targets = r#"{"choices":["a","b"],"labels":[1,0]}"#;
        let row = format!(r#"{{"question":"Q","mc1_targets":{targets},"mc2_targets":{targets}}}"#);
        let path = "snapshots/a/multiple_choice/validation-00000-of-00001.jsonl";
        let found = cache("datasets--truthfulqa--truthful_qa", &[(path, &row)])?;
        let wanted = r#"[{"question":"Q","mc1_targets":{"a":1,"b":0},"mc2_targets":{"a":1,"b":0}}]"#;
        assert_eq!(text(&found, "truthfulqa/mc_task_v0.json")?, wanted);

        let piqa = "{\"goal\":\"g\",\"sol1\":\"a\",\"sol2\":\"b\",\"label\":1}\n";
        let found = cache("datasets--ybisk--piqa", &[("snapshots/a/plain_text/validation/0000.jsonl", piqa)])?;
        assert_eq!(text(&found, "piqa/valid.jsonl")?, piqa);
        assert_eq!(text(&found, "piqa/valid-labels.lst")?, "1\n");

        let files = [
            ("snapshots/a/snarks/test.jsonl", "{\"input\":\"i\",\"target\":\"(A)\"}"),
            ("snapshots/a/navigate/test.jsonl", "{\"input\":\"j\",\"target\":\"No\"}"),
        ];
        let found = cache("datasets--SaylorTwift--bbh", &files)?;
        assert_eq!(text(&found, "bbh/bbh/snarks.json")?, r#"{"examples":[{"input":"i","target":"(A)"}]}"#);
        assert!(find_in(&[found.path().to_owned()], "bbh/bbh/hyperbaton.json").is_none());
        Ok(())
    }

    #[test]
    fn a_data_set_by_subject_is_put_together_and_one_with_a_split_missing_is_not_used() -> Result<()> {
        let row = |subject: &str| format!("{{\"subject\":\"{subject}\"}}\n");
        let (anatomy, virology) = (row("anatomy"), row("virology"));
        let found = cache(
            "datasets--cais--mmlu",
            &[
                ("snapshots/a/virology/test-00000-of-00001.jsonl", &virology),
                ("snapshots/a/anatomy/test-00000-of-00001.jsonl", &anatomy),
                ("snapshots/a/anatomy/dev-00000-of-00001.jsonl", &anatomy),
            ],
        )?;
        assert_eq!(text(&found, "mmlu/test.jsonl")?, anatomy + &virology);
        let found = cache("datasets--mbpp", &[("snapshots/a/full/test-00000-of-00001.jsonl", "{\"task_id\":11}\n")])?;
        assert!(find_in(&[found.path().to_owned()], "mbpp/mbpp.jsonl").is_none());
        Ok(())
    }

    #[test]
    fn a_row_that_is_not_as_expected_is_named() -> Result<()> {
        let row = r#"{"question":"Q","choices":{"text":["a"],"label":["A"]},"answerKey":"E"}"#;
        let found = cache("datasets--allenai--ai2_arc", &[("snapshots/a/ARC-Easy/test.jsonl", row)])?;
        let error = format!("{:#}", text(&found, "arc/arc_easy_test.jsonl").expect_err("there is no E"));
        assert!(error.contains("ARC-Easy/test.jsonl` line 1") && error.contains("found `E`"), "{error}");
        Ok(())
    }

    #[test]
    fn a_cache_is_looked_for_in_the_data_folder_first() {
        let environment = HubEnvironment { hub_cache: Some("/hub".into()), ..HubEnvironment::default() };
        assert_eq!(caches(Path::new("d"), &environment), ["d", "d/hub", "/hub"].map(PathBuf::from));
        assert_eq!(caches(Path::new(""), &environment), ["/hub"].map(PathBuf::from));
    }
}
