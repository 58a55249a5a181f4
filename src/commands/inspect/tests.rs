//! The command on made-up directories and on the parity fixtures.

use std::fs;

use serde_json::json;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

fn code(args: &InspectArgs) -> Option<u8> {
    main(args).err().map(|error| crate::error::exit_code(&error))
}

fn args(path: Option<&Path>) -> InspectArgs {
    InspectArgs { path: path.map(|path| path.display().to_string()), data: None, model: None, json: true }
}

#[test]
fn parameters_and_types_come_from_the_headers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b.weight": {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]},
    })
    .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 58]);
    fs::write(folder.path().join("model.safetensors"), bytes)?;
    fs::write(folder.path().join("config.json"), r#"{"model_type": "mamba", "vocab_size": 99}"#)?;
    let found = ModelFindings::of("x", folder.path())?;
    assert_eq!(found.num_parameters, Some(17));
    assert_eq!(found.dtypes, BTreeMap::from([("bf16".to_owned(), 5), ("f32".to_owned(), 12)]));
    assert_eq!((found.vocab_size, found.has_chat_template), (Some(99), false));
    assert!(found.unsupported.as_deref().is_some_and(|reason| reason.contains("mamba")), "{found:?}");
    assert!(found.text().contains("parameters      17\n"), "{}", found.text());
    fs::write(folder.path().join("model.safetensors"), u64::MAX.to_le_bytes())?;
    let error = ModelFindings::of("x", folder.path()).expect_err("a header longer than its file");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    Ok(())
}

#[test]
fn a_supported_model_is_described_without_a_complaint() -> Result<()> {
    let mut seen = 0;
    for entry in fs::read_dir(fixture(""))? {
        let directory = entry?.path();
        if directory.join("config.json").is_file() && directory.join("model.safetensors").is_file() {
            let found = ModelFindings::of("fixture", &directory)?;
            assert_eq!(found.unsupported, None, "{}", directory.display());
            assert!(found.num_parameters.is_some_and(|count| count > 0));
            seen += 1;
        }
    }
    assert!(seen > 0, "the fixtures hold at least one model");
    Ok(())
}

#[test]
fn rows_are_counted_by_kind_and_damaged_lines_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, "{\"id\":1,\"messages\":[]}\n\n{\"text\":\"x\"}\n{\"id\":3}\ntorn {\n")?;
    let found = DataFindings::of(&path, None)?;
    assert_eq!((found.rows, found.conversations, found.texts, found.others, found.damaged), (4, 1, 1, 1, 1));
    assert_eq!(found.columns["id"], 2);
    assert!(found.text().contains("columns         id (2), messages (1), text (1)"), "{}", found.text());
    assert_eq!(code(&args(Some(&path))), None, "a file needs no --data");
    Ok(())
}

#[test]
fn stages_of_a_run_are_told_apart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<()> {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder"))?;
        Ok(fs::write(path, text)?)
    };
    write("run.toml", "")?;
    write("generate/stats.json", "{\"steps\": [{\"step\": \"answers\", \"pending\": 2}]}")?;
    write("generate/answers.jsonl", "{}\n{}\n")?;
    write("curate/stats.json", "{}")?;
    write("curate/train.jsonl", "{}\n")?;
    let found = RunFindings::of(folder.path());
    let states: Vec<StageState> = found.stages.iter().map(|stage| stage.state).collect();
    use StageState::{Finished, NotStarted, Started};
    assert_eq!(states, [Started, Finished, NotStarted, NotStarted, NotStarted]);
    assert_eq!((found.stages[0].rows["answers.jsonl"], found.stages[1].rows["train.jsonl"]), (2, 1));
    assert!(found.text().contains("curate          finished     train 1\n"), "{}", found.text());
    assert_eq!(code(&args(Some(folder.path()))), None);
    Ok(())
}

#[test]
fn what_is_nothing_known_is_a_usage_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    assert_eq!(code(&args(Some(folder.path()))), Some(2));
    assert_eq!(code(&args(Some(&folder.path().join("missing")))), Some(2));
    let with_model = InspectArgs { model: Some("x".into()), ..args(Some(folder.path())) };
    assert_eq!(code(&with_model), Some(2));
    let data = InspectArgs { data: Some(folder.path().join("missing.jsonl")), ..args(None) };
    assert_eq!(code(&data), Some(2));
    Ok(())
}

#[test]
fn marks_go_between_characters() {
    assert_eq!([0, 1, 2, 3, 9].map(|place| char_boundary("é!", place)), [0, 0, 2, 3, 3]);
}
