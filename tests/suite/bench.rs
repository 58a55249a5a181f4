//! `glan bench` on the shipped models: it runs, counts right, and needs no tokenizer.

use serde_json::{Value, json};

use super::support::{glan, root};

fn generate(model: &str, more: &[&str]) -> super::support::Outcome {
    let folder = tempfile::tempdir().unwrap();
    let model = root().join(model);
    let arguments = [&["bench", "generate", "--model", model.to_str().unwrap(), "--prompt-tokens", "9"][..], more];
    glan(folder.path(), &arguments.concat())
}

#[test]
fn one_json_line_per_batch_with_everything_that_was_measured() {
    for dtype in ["f32", "bf16"] {
        let more =
            ["--new-tokens", "5", "--batch", "1,3", "--repeats", "1", "--threads", "2", "--dtype", dtype, "--json"];
        let outcome = generate("models/primer-base", &more).expect_code(0);
        let lines: Vec<Value> = outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["batch"].clone()).collect::<Vec<_>>(), [json!(1), json!(3)]);
        for line in &lines {
            assert_eq!((&line["dtype"], &line["threads"]), (&json!(dtype), &json!(2)));
            assert_eq!(line["generated"].as_u64(), line["batch"].as_u64().map(|batch| batch * 5));
            for rate in ["prefill_tok_s", "out_tok_s_e2e", "s_prefill", "s_total"] {
                assert!(line[rate].as_f64().unwrap() > 0.0, "{rate} in {line}");
            }
        }
    }
}

#[test]
fn a_schema_holds_the_output_and_a_table_is_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    std::fs::write(&schema, r#"{"enum": ["yes", "no"]}"#).unwrap();
    let more = ["--new-tokens", "40", "--batch", "2", "--repeats", "1", "--json-schema", schema.to_str().unwrap()];
    let json = generate("models/primer-base", &[&more[..], &["--json"]].concat()).expect_code(0).stdout;
    let line: Value = serde_json::from_str(&json).unwrap();
    assert!(line["generated"].as_u64().unwrap() < 80, "an answer of a few letters ends early: {line}");
    let table = generate("models/primer-base", &more).expect_code(0).stdout;
    assert!(table.contains("decode tok/s") && table.contains("prompts of 9 tokens"), "{table}");
}

#[test]
fn a_vocabulary_too_small_for_a_made_up_tokenizer_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(root().join("tests/fixtures/models/llama").join(file), folder.path().join(file)).unwrap();
    }
    let arguments = ["bench", "generate", "--model", folder.path().to_str().unwrap(), "--batch", "1"];
    glan(folder.path(), &arguments).expect_code(2).expect_stderr(&["tokenizer.json", "96"]);
}
