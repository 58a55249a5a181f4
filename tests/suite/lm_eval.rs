//! Log-likelihoods and scores against lm-evaluation-harness itself: the numbers of `scripts/make_lm_eval_reference.py`,
//! 200 items of every task, on a real checkpoint and on a random model of each family.
//!
//! The suite compares all items of the main tasks on the checkpoint, and the first ones elsewhere; `scripts/check_lm_eval.sh` sets
//! `GLAN_LM_EVAL_ALL` and compares all everywhere.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    chat_templates::shared,
    support::{glan, root},
};

/// Most that a log-likelihood may differ from the harness's: both add up hundreds of f32 numbers, in other orders, and
/// the reference is rounded to four decimals.
const TOLERANCE: f64 = 1e-3;

/// Random models.
const FAMILIES: [&str; 6] = ["llama", "llama3", "mistral", "mistral_sliding", "qwen2", "qwen3"];
/// Items of the models that are only looked at in part.
const FEW: usize = 25;

#[derive(Deserialize)]
struct Reference {
    model: Model,
    limit: usize,
    tasks: Vec<TaskNumbers>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    tokenizer: String,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    tensors: Vec<(String, Vec<usize>)>,
    #[serde(default)]
    weights_sha256: String,
}

#[derive(Deserialize)]
struct TaskNumbers {
    task: String,
    num_fewshot: usize,
    scores: serde_json::Map<String, Value>,
    items: Vec<Vec<f64>>,
    greedy: Vec<String>,
}

fn read(name: &str) -> Reference {
    let file = File::open(root().join(format!("tests/fixtures/lm_eval/{name}.json.gz"))).unwrap();
    serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap()
}

/// The weights that the script makes from a tensor's name: uniform numbers of splitmix64, keyed by FNV-1a.
fn weights(name: &str, shape: &[usize], hidden_size: usize) -> Vec<f32> {
    let key = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let (center, width) = if name.ends_with("norm.weight") {
        (1.0, 0.3)
    } else if name.ends_with("bias") {
        (0.0, 0.5)
    } else if name.starts_with("model.embed_tokens") {
        (0.0, 4.0 / (hidden_size as f64).sqrt())
    } else {
        let gain = if name.starts_with("lm_head") { 4.0 } else { 2.5 };
        (0.0, gain / (*shape.last().unwrap() as f64).sqrt())
    };
    let number = |place: usize| {
        let mut x = (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(key);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let u = (x >> 40) as f64 / 8_388_608.0 - 1.0;
        (center + u * width) as f32
    };
    (0..shape.iter().product()).map(number).collect()
}

/// A directory with the model of a reference.
fn write_model(model: &Model, shared: &Path, folder: &Path) -> PathBuf {
    let tokenizer = shared.join("models").join(&model.tokenizer);
    if model.tensors.is_empty() {
        return tokenizer;
    }
    let hidden_size = model.config["hidden_size"].as_u64().unwrap() as usize;
    let mut hasher = Sha256::new();
    let mut tensors = std::collections::HashMap::new();
    for (name, shape) in &model.tensors {
        let values = weights(name, shape, hidden_size);
        for value in &values {
            hasher.update(value.to_le_bytes());
        }
        tensors.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap());
    }
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, model.weights_sha256, "{}: these are not the reference's weights", model.name);
    let directory = folder.join(&model.name);
    fs::create_dir(&directory).unwrap();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    fs::write(directory.join("config.json"), model.config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tokenizer.join(file), directory.join(file)).unwrap();
    }
    directory
}

/// What one task's samples file holds: per item the log-likelihoods and which continuations are greedy.
fn samples(folder: &Path, task: &str) -> Vec<(Vec<f64>, String)> {
    let prefix = format!("samples_{task}_2");
    let is_it = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&prefix);
    let model = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let path = fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()).find(is_it).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let pairs = row["resps"].as_array().unwrap().iter().map(|pair| &pair[0]);
        let sum = |pair: &Value| pair[0].as_str().unwrap().parse().unwrap();
        let greedy = |pair: &Value| if pair[1] == "True" { '1' } else { '0' };
        (pairs.clone().map(sum).collect(), pairs.map(greedy).collect())
    };
    fs::read_to_string(path).unwrap().lines().map(row).collect()
}

/// Compares one task; the number of requests, and the largest difference.
fn compare(task: &TaskNumbers, results: &Value, output: &Path, model: &str, limit: usize) -> (usize, f64) {
    let place = format!("{model} {} {}-shot", task.task, task.num_fewshot);
    let ours = samples(output, &task.task);
    assert_eq!(ours.len(), task.items.len().min(limit), "{place}");
    let mut worst = 0.0_f64;
    for (doc_id, (sums, greedy)) in ours.iter().enumerate() {
        let expected = &task.items[doc_id];
        assert_eq!(sums.len(), expected.len(), "{place} document {doc_id}");
        for (idx, (sum, expected)) in sums.iter().zip(expected).enumerate() {
            let difference = (sum - expected).abs();
            assert!(difference <= TOLERANCE, "{place} document {doc_id} choice {idx}: {sum} instead of {expected}");
            worst = worst.max(difference);
        }
        assert_eq!(*greedy, task.greedy[doc_id], "{place} document {doc_id}");
    }
    let requests = ours.iter().map(|(sums, _)| sums.len()).sum();
    if ours.len() < task.items.len() {
        return (requests, worst);
    }
    assert!(!task.scores.is_empty(), "{place}");
    for (metric, expected) in &task.scores {
        let ours = results[&task.task][metric].as_f64();
        let expected = expected.as_f64().unwrap();
        let is_equal = ours.is_some_and(|ours| {
            (ours - expected).abs() <= if is_counted(&task.task, metric) { 1e-9 } else { TOLERANCE }
        });
        assert!(is_equal, "{place} {metric}: {ours:?} instead of {expected}");
    }
    (requests, worst)
}

/// Whether a metric counts right answers, so that it must be equal; others are made of the log-likelihoods themselves.
fn is_counted(task: &str, metric: &str) -> bool {
    !metric.starts_with("likelihood_diff") && task != "truthfulqa_mc2"
}

/// Compares one model; what is to be said of it.
fn check(name: &str, limit: usize) -> String {
    let Some(shared) = shared().filter(|shared| shared.join("benchmarks").is_dir()) else {
        return "skipped: no folder of shared models and benchmarks".to_owned();
    };
    let reference = read(name);
    let limit = if std::env::var_os("GLAN_LM_EVAL_ALL").is_some() { reference.limit } else { limit };
    let folder = tempfile::tempdir().unwrap();
    let model = write_model(&reference.model, &shared, folder.path());
    let mut shots: Vec<usize> = reference.tasks.iter().map(|task| task.num_fewshot).collect();
    shots.sort_unstable();
    shots.dedup();
    let (mut requests, mut worst, mut summary) = (0, 0.0_f64, String::new());
    for shots in shots {
        let tasks: Vec<_> = reference.tasks.iter().filter(|task| task.num_fewshot == shots).collect();
        let names: Vec<&str> = tasks.iter().map(|task| task.task.as_str()).collect();
        let output = folder.path().join(format!("out-{shots}"));
        let said = glan(
            folder.path(),
            &[
                "evaluate",
                "--json",
                "--model",
                model.to_str().unwrap(),
                "--tasks",
                &names.join(","),
                "--data",
                shared.join("benchmarks").to_str().unwrap(),
                "--output",
                output.to_str().unwrap(),
                "--limit",
                &limit.to_string(),
                "--num-fewshot",
                &shots.to_string(),
            ],
        )
        .expect_code(0);
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        for task in tasks {
            let (compared, difference) = compare(task, &said["results"], &output, name, limit);
            requests += compared;
            worst = worst.max(difference);
        }
        summary += &format!("{name} {shots}-shot: {}\n", said["tokens"]);
    }
    summary + &format!("{name}: {requests} log-likelihoods agree, the worst differs by {worst:.1e}")
}

#[test]
fn stories260k_scores_as_in_the_harness() {
    eprintln!("{}", check("stories260K", 200));
}

#[test]
fn stories260k_scores_on_the_other_tasks_as_in_the_harness() {
    eprintln!("{}", check("stories260K_rest", FEW));
}

#[test]
fn random_models_of_each_family_score_as_in_the_harness() {
    for name in FAMILIES {
        eprintln!("{}", check(name, FEW));
    }
}
