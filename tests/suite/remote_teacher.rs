//! A teacher elsewhere: `glan generate` against `glan serve`, and through OpenAI's batch files with `glan complete`. The records are
//! those of the same model on this machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    http::Server,
    support::{Outcome, glan, glan_command, root},
};

/// The quick run in small, as a file.
fn config(folder: &Path, teacher: &[(&str, &str)]) -> String {
    let quick = fs::read_to_string(root().join("configs/quick.toml")).unwrap();
    let mut table: toml::Table = toml::from_str(&quick).unwrap();
    let generate = table["generate"].as_table_mut().unwrap();
    for (key, value) in
        [("samples_per_discipline", 1), ("max_subjects", 1), ("syllabi_per_subject", 1), ("num_questions", 20)]
    {
        generate.insert(key.to_owned(), toml::Value::Integer(value));
    }
    for key in ["taxonomy", "prompts"] {
        let path = root().join(generate[key].as_str().unwrap());
        generate.insert(key.to_owned(), toml::Value::String(path.to_string_lossy().into_owned()));
    }
    for (key, value) in teacher {
        table["teacher"].as_table_mut().unwrap().insert((*key).to_owned(), toml::Value::String((*value).to_owned()));
    }
    let path = folder.join(format!("config-{}.toml", teacher.len()));
    fs::write(&path, table.to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

fn generate(folder: &Path, config: &str, run_dir: &str, extra: &[&str]) -> Outcome {
    let arguments = ["generate", "-c", config, "--run-dir", run_dir];
    glan(folder, &[&arguments[..], extra].concat())
}

/// Every file of the stage but the teacher's name.
fn files(run_dir: &Path) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(run_dir.join("generate")).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file() && !path.ends_with("teacher.json"));
    files.map(|path| (path.file_name().unwrap().into(), fs::read_to_string(path).unwrap())).collect()
}

#[track_caller]
fn assert_same(run_dir: &Path, expected: &BTreeMap<PathBuf, String>) {
    let found = files(run_dir);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, text) in expected {
        assert!(found[name] == *text, "{} differs", name.display());
    }
}

#[test]
fn an_endpoint_gives_the_records_of_the_same_model_here_and_batch_files_do_too() {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join("models/primer-teacher").to_string_lossy().into_owned();
    let here = config(folder.path(), &[("model", &model)]);
    generate(folder.path(), &here, "here", &[]).expect_code(0);
    let expected = files(&folder.path().join("here"));
    assert!(expected[Path::new("answers.jsonl")].lines().count() > 10);

    let server = Server::start(&["--api-key", "secret", "--served-model-name", "primer"]);
    let endpoint = format!("http://{}/v1/", server.address);
    let there = config(folder.path(), &[("model", "primer"), ("endpoint", &endpoint)]);
    generate(folder.path(), &there, "there", &[]).expect_code(2).expect_stderr(&["status 401", "OPENAI_API_KEY"]);
    let mut command = glan_command(folder.path());
    command.args(["generate", "-c", &there, "--run-dir", "there"]).env("OPENAI_API_KEY", "secret");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&folder.path().join("there"), &expected);

    // Half of the first file's answers are lost on the way.
    for round in 0..20 {
        let (requests, answers) = (format!("requests-{round}.jsonl"), format!("answers-{round}.jsonl"));
        let exported = generate(folder.path(), &here, "files", &["--json", "--export-batch", &requests]).expect_code(0);
        let exported: serde_json::Value = serde_json::from_str(&exported.stdout).unwrap();
        if exported["requests"] == 0 {
            break;
        }
        let arguments =
            ["complete", "--model", &model, "--requests", &requests, "--output", &answers, "--format", "openai-batch"];
        glan(folder.path(), &arguments).expect_code(0);
        if round == 0 {
            let path = folder.path().join(&answers);
            let text = fs::read_to_string(&path).unwrap();
            let kept: String = text.lines().skip(1).step_by(2).map(|line| format!("{line}\n")).collect();
            fs::write(path, kept).unwrap();
        }
        generate(folder.path(), &here, "files", &["--import-batch", &answers]).expect_code(0);
    }
    assert_same(&folder.path().join("files"), &expected);
}
