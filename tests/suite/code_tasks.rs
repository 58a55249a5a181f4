//! HumanEval and MBPP from prompt to score, with programs that run in the sandbox.

use std::{fs, path::Path};

use clap::Parser;
use glan::{
    config::CodeConfig,
    evaluate::{EvaluateArgs, plan_model, run_model, sandbox::missing_layers},
    telemetry::print_result,
};
use serde_json::{Value, json};

use super::{
    scripted::ScriptedModel,
    support::{glan, root},
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    evaluate: EvaluateArgs,
}

fn launcher() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_glan"))
}

/// Whether this machine can have a complete sandbox; says so where not.
fn has_sandbox() -> bool {
    let missing = missing_layers(launcher()).unwrap();
    if !missing.is_empty() {
        print_result(format!("skipped: the sandbox lacks {missing:?}"));
    }
    missing.is_empty()
}

/// Three problems of each benchmark, and MBPP's examples.
fn write_benchmarks(folder: &Path) {
    let humaneval: Vec<Value> = [("add", "a + b"), ("sub", "a - b"), ("mul", "a * b")]
        .iter()
        .map(|(name, body)| {
            json!({
                "task_id": name,
                "prompt": format!("def {name}(a, b):\n    \"\"\"The result of {name}.\"\"\"\n"),
                "entry_point": name,
                "canonical_solution": format!("    return {body}\n"),
                "test": format!("def check(candidate):\n    for a in range(5):\n        a, b = a, 7\n        assert candidate(a, b) == {body}\n"),
            })
        })
        .collect();
    let mbpp: Vec<Value> = (2..=4)
        .chain(11..=13)
        .map(|id| {
            let tests: Vec<String> = (0..3).map(|x| format!("assert plus_{id}({x}) == {}", x + id)).collect();
            json!({
                "task_id": id,
                "text": format!("Write a function plus_{id} that adds {id} to a number."),
                "code": format!("def plus_{id}(x):\n    return x + {id}"),
                "test_list": tests,
            })
        })
        .collect();
    for (name, rows) in [("humaneval/HumanEval.jsonl", humaneval), ("mbpp/mbpp.jsonl", mbpp)] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        fs::write(path, lines.join("\n") + "\n").unwrap();
    }
}

/// The reference solution of the problem that a prompt ends with, in the form that the prompt asks for.
fn solution(prompt: &str, operators: [&str; 3]) -> String {
    let last = |name: &str| prompt.rfind(name);
    if let Some((_, body)) =
        ["add", "sub", "mul"].iter().zip(operators).max_by_key(|(name, _)| last(&format!("def {name}(")))
        && prompt.contains("The result of")
    {
        return format!("    return a {body} b\n```\nsome words");
    }
    let id = (11..=13).max_by_key(|id| last(&format!("plus_{id}("))).unwrap();
    let sign = operators[0];
    format!(
        "\ndef plus_{id}(x):\n    return x {sign} {id}\n{}",
        if prompt.ends_with("```python\n") { "```" } else { "[DONE]" }
    )
}

/// Evaluates a script on tasks; the results, and the rows of one task's samples.
fn evaluate(folder: &Path, tasks: &str, answer: impl FnMut(&str, u64) -> String) -> (Value, Vec<Value>) {
    write_benchmarks(&folder.join("data"));
    let data = folder.join("data").to_string_lossy().into_owned();
    let arguments = ["glan", "--tasks", tasks, "--data", &data, "--model", "scripted", "--output", "out"];
    let args = Cli::try_parse_from(arguments).unwrap().evaluate;
    let plan = plan_model(&args, &CodeConfig { wall_seconds: 300, ..CodeConfig::default() }, launcher()).unwrap();
    let mut answer = answer;
    let mut model = ScriptedModel::new("scripted", |prompt, sampling| answer(prompt, sampling.seed)).unwrap();
    let results = run_model(&plan, &folder.join("out"), &mut model).unwrap();
    let samples = fs::read_dir(folder.join("out/scripted")).unwrap().map(|entry| entry.unwrap().path());
    let first = format!("samples_{}_", tasks.split(',').next().unwrap());
    let path =
        samples.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&first)).unwrap();
    let text = fs::read_to_string(path).unwrap();
    (results["results"].clone(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

const TASKS: [(&str, &str); 5] = [
    ("humaneval", "pass@1,create_test"),
    ("humaneval_instruct", "pass@1,create_test"),
    ("mbpp", "pass_at_1,none"),
    ("mbpp_instruct", "pass_at_1,extract_code"),
    ("glan_mbpp", "pass_at_1,extract"),
];

#[test]
fn reference_solutions_all_pass_and_broken_ones_never() {
    if !has_sandbox() {
        return;
    }
    let names = TASKS.map(|(task, _)| task).join(",");
    for (operators, expected) in [(["+", "-", "*"], 1.0), (["-", "+", "//"], 0.0)] {
        let folder = tempfile::tempdir().unwrap();
        let (results, rows) = evaluate(folder.path(), &names, |prompt, _| {
            let whole = solution(prompt, operators);
            // The model is stopped where the task says; a script has to do it itself.
            if prompt.ends_with("\"\"\"\n") { whole.split("```").next().unwrap().to_owned() } else { whole }
        });
        for (task, metric) in TASKS {
            assert_eq!(results[task][metric], expected, "{task}: {results:#}");
        }
        assert_eq!(rows.len(), 3);
        for row in rows {
            let verdict = &row["verdicts"][0];
            if expected == 1.0 {
                assert_eq!(*verdict, json!({"verdict": "passed"}), "{row}");
            } else {
                assert_eq!(verdict["verdict"], "failed");
                // 0 - 7 is 0 + 7 nowhere; 0 // 7 is 0 * 7, 1 // 7 is not 1 * 7.
                assert!(verdict["reason"].as_str().unwrap().starts_with("AssertionError"), "{row}");
            }
        }
    }
}

#[test]
fn samples_say_what_ended_a_program() {
    if !has_sandbox() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (results, rows) = evaluate(folder.path(), "humaneval", |prompt, _| {
        let body = match prompt {
            _ if prompt.contains("def add(") => "while True: pass",
            _ if prompt.contains("def sub(") => "return bytearray(1 << 40)",
            _ => "return a *** b",
        };
        format!("    {body}\n")
    });
    assert_eq!(results["humaneval"]["pass@1,create_test"], 0.0);
    let verdicts: Vec<&Value> = rows.iter().map(|row| &row["verdicts"][0]).collect();
    assert_eq!(*verdicts[0], json!({"verdict": "timeout", "clock": "processor"}));
    assert_eq!(*verdicts[1], json!({"verdict": "memory"}));
    assert!(verdicts[2]["reason"].as_str().unwrap().starts_with("SyntaxError"), "{verdicts:?}");
}

#[test]
fn pass_at_k_counts_the_samples_that_pass() {
    if !has_sandbox() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut asked = 0;
    let (results, rows) = evaluate(folder.path(), "humaneval_64", |prompt, seed| {
        asked += 1;
        let operators = if seed % 4 == 0 { ["+", "-", "*"] } else { ["-", "+", "//"] };
        solution(prompt, operators).split("```").next().unwrap().to_owned()
    });
    assert_eq!(asked, 3 * 64);
    // 16 of 64 are right: 1 - C(48, k) / C(64, k).
    let close = |metric: &str, expected: f64| {
        let value = results["humaneval_64"][metric].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-9, "{metric}: {value}");
    };
    close("pass@2,create_test", 1.0 - 48.0 * 47.0 / (64.0 * 63.0));
    close("pass@64,create_test", 1.0);
    let passed = rows[0]["verdicts"].as_array().unwrap().iter().filter(|it| it["verdict"] == "passed").count();
    assert_eq!((rows[0]["verdicts"].as_array().unwrap().len(), passed), (64, 16));
}

#[test]
fn the_command_scores_programs_and_refuses_without_an_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    write_benchmarks(&folder.path().join("data"));
    let model = root().join("tests/fixtures/models/llama").to_string_lossy().into_owned();
    let arguments = ["evaluate", "--model", &model, "--tasks", "humaneval", "--data", "data", "--output", "out"];
    let without = ["--set", "evaluate.code.python=no-such-python"];
    glan(folder.path(), &[&arguments[..], &without].concat()).expect_code(2).expect_stderr(&[
        "humaneval",
        "no-such-python",
        "evaluate.code.python",
    ]);
    if !has_sandbox() {
        return;
    }
    let outcome = glan(folder.path(), &[&arguments[..], &["--json"]].concat()).expect_code(0);
    let results: Value = serde_json::from_str(&outcome.stdout).unwrap();
    // A model of random weights writes no program.
    assert_eq!(results["results"]["humaneval"]["pass@1,create_test"], 0.0);
}

/// In a run the other tasks go on, and the comparison says what is missing.
#[test]
fn a_run_without_an_interpreter_skips_programs_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    write_benchmarks(&folder.path().join("data"));
    let fixture = root().join("tests/fixtures/models/llama");
    let student = folder.path().join("run/train/student");
    fs::create_dir_all(&student).unwrap();
    for entry in fs::read_dir(&fixture).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, student.join(path.file_name().unwrap())).unwrap();
    }
    let model = toml::Value::String(fixture.to_string_lossy().into_owned());
    let text = format!(
        "[student]\nmodel = {model}\n[evaluate]\ntasks = [\"primer_mc\", \"humaneval\"]\ndata_dir = \"data\"\nlimit = 1\n\
         apply_chat_template = false\n[evaluate.code]\npython = \"no-such-python\"\n"
    );
    fs::write(folder.path().join("config.toml"), text).unwrap();
    let arguments = ["evaluate", "-c", "config.toml", "--run-dir", "run"];
    glan(folder.path(), &arguments).expect_code(0).expect_stderr(&["humaneval", "evaluate.code.python"]);
    let comparison = fs::read_to_string(folder.path().join("run/evaluate/comparison.json")).unwrap();
    let comparison: Value = serde_json::from_str(&comparison).unwrap();
    assert_eq!(comparison["skipped"][0]["task"], "humaneval");
    assert_eq!(comparison["tasks"][0]["task"], "primer_mc");
}
