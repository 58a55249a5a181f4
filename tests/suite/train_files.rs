//! What `glan train` reads and leaves behind: kinds of row files, samples, shards, GGUF, the model card; and runs that stop
//! themselves.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use serde_json::Value;

use super::{
    resume::{steps, train, write_rows},
    support::{glan, root},
};

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(path: &Path) -> Vec<Value> {
    String::from_utf8(bytes(path)).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_train_the_same_student_from_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let fixtures = root().join("tests/fixtures/rows");
    let text = fs::read_to_string(fixtures.join("rows.jsonl")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let array = format!("[{}]", text.trim_end().replace('\n', ",\n"));
    for (name, rows) in [
        ("lines", text.clone().into_bytes()),
        ("gzip", gzip.finish().unwrap()),
        ("array", array.into_bytes()),
        ("snappy", bytes(&fixtures.join("snappy.parquet"))),
        ("zstd", bytes(&fixtures.join("zstd.parquet"))),
    ] {
        fs::write(folder.join("rows.jsonl"), rows).unwrap();
        train(folder, name, &["train.max_steps=8"]).expect_code(0);
        let student = |name: &str| bytes(&folder.join(name).join("student/model.safetensors"));
        assert!(student(name) == student("lines"), "{name}");
        let inspected = glan(folder, &["inspect", "rows.jsonl", "--json"]).expect_code(0);
        let found: Value = serde_json::from_str(&inspected.stdout).unwrap();
        assert_eq!((&found["rows"], &found["damaged"]), (&Value::from(5), &Value::from(0)), "{name}: {found}");
    }
    // No file is left of the tokens.
    let names: Vec<_> = fs::read_dir(folder.join("zstd")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    fs::write(folder.join("rows.jsonl"), "[{\"text\": \"t3 t4\"}, {\"text\": 5}]").unwrap();
    train(folder, "bad", &[]).expect_code(1).expect_stderr(&["rows.jsonl` row 2", "`text` is a number"]);
}

#[test]
fn samples_are_written_at_every_evaluation_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder);
    let settings = |more: &[&'static str]| {
        let base = ["train.max_steps=60", "train.eval_steps=20", "train.method=lora", "train.lora_dropout=0.1"];
        [&base[..], more].concat()
    };
    train(folder, "without", &settings(&["train.num_samples=0"])).expect_code(0);
    assert!(!folder.join("without/samples.jsonl").exists());
    train(folder, "with", &settings(&["train.sample_max_new_tokens=6"])).expect_code(0).expect_stderr(&["row-0: "]);
    for file in ["metrics.jsonl", "student/model.safetensors", "adapter/adapter_model.safetensors"] {
        assert!(bytes(&folder.join("without").join(file)) == bytes(&folder.join("with").join(file)), "{file}");
    }
    let rows = lines(&folder.join("with/samples.jsonl"));
    let places: Vec<(u64, &str)> =
        rows.iter().map(|row| (row["step"].as_u64().unwrap(), row["id"].as_str().unwrap())).collect();
    let wanted = [20, 40, 60].into_iter().flat_map(|step| ["row-0", "row-1", "row-2"].map(|id| (step, id)));
    assert_eq!(places, wanted.collect::<Vec<_>>());
    assert_eq!(rows[0]["prompt"].as_str().unwrap().split_whitespace().last(), Some("t17"), "{}", rows[0]);

    // The last sample is what the engine makes of the student.
    let given = settings(&["train.sample_prompts=[\"t9 t8 t7\"]", "train.sample_max_new_tokens=12"]);
    train(folder, "given", &given).expect_code(0);
    let rows = lines(&folder.join("given/samples.jsonl"));
    assert_eq!((rows.len(), &rows[2]["id"]), (3, &Value::from("prompt-1")));
    fs::write(folder.join("in.jsonl"), "{\"id\": 1, \"prompt\": \"t9 t8 t7\", \"max_new_tokens\": 12}\n").unwrap();
    let complete = ["complete", "--model", "given/student", "--requests", "in.jsonl", "--output", "o.jsonl"];
    glan(folder, &complete).expect_code(0);
    let answer = lines(&folder.join("o.jsonl"))[0]["text"].as_str().unwrap().trim().to_owned();
    assert_eq!(rows[2]["answer"].as_str().unwrap().trim(), answer);
}

#[test]
fn a_student_comes_in_shards_as_gguf_and_with_a_card_that_names_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder);
    let settings = ["train.max_steps=4", "train.max_shard_bytes=60000", "train.export_gguf=[\"q8_0\",\"f32\"]"];
    train(folder, "cut", &settings).expect_code(0).expect_stderr(&["student-q8_0.gguf", "compared"]);
    train(folder, "whole", &["train.max_steps=4"]).expect_code(0);
    let student = folder.join("cut/student");
    assert!(!student.join("model.safetensors").exists());
    let index: Value = glan::records::read_json(&student.join("model.safetensors.index.json")).unwrap();
    let mut files: Vec<&str> = index["weight_map"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    files.sort_unstable();
    files.dedup();
    assert!(files.len() > 2, "{files:?}");
    for file in files {
        assert!(fs::metadata(student.join(file)).unwrap().len() < 61_000 + 4_000, "{file}");
    }
    let weights = |path: &str| {
        let device = candle_core::Device::Cpu;
        let model = glan::model::Decoder::load(&folder.join(path), &device, glan::device::DtypeChoice::F32).unwrap();
        glan_kernels::to_vec(&model.weights.arena).unwrap()
    };
    assert_eq!(weights("cut/student"), weights("whole/student"));
    assert_eq!(weights("cut/student-f32.gguf"), weights("whole/student"));
    let card = fs::read_to_string(student.join("README.md")).unwrap();
    let hash = blake3::hash(&bytes(&folder.join("rows.jsonl"))).to_hex();
    let parts =
        ["| training | `rows.jsonl` | 41 |", &hash[..16], "| validation, at the end |", "max_shard_bytes = 60000"];
    for part in parts {
        assert!(card.contains(part), "`{part}` is not in {card}");
    }
    let settings = ["train.export_gguf=[\"q9\"]"];
    train(folder, "wrong", &settings).expect_code(2).expect_stderr(&["train.export_gguf", "`q9`", "q8_0"]);
}

#[test]
fn a_spike_or_a_loss_that_is_no_number_stops_with_the_rows_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut file = File::create(folder.join("rows.jsonl")).unwrap();
    for row in 0..40 {
        writeln!(file, "{{\"id\":\"row-{row}\",\"prompt\":\"t3 t4\",\"completion\":\" t5 t6\"}}").unwrap();
    }
    writeln!(file, "{{\"id\":\"odd-one\",\"prompt\":\"t3 t4\",\"completion\":\" t90 t80 t70 t60\"}}").unwrap();
    let settings = ["train.train_batch_size=1", "train.max_steps=400", "train.loss_spike_factor=4"];
    let parts = ["the last checkpoint is kept", "train.loss_spike_factor", "of this batch: odd-one"];
    train(folder, "spike", &settings).expect_code(1).expect_stderr(&parts);
    let kept = steps(&folder.join("spike"));
    let last = kept.last().expect("a checkpoint is kept");
    // It is whole: the same command takes it up, and stops at the same row.
    let resuming = format!("resuming at step {last} of 400");
    train(folder, "spike", &settings).expect_code(1).expect_stderr(&[&resuming, parts[2]]);
    assert_eq!(steps(&folder.join("spike")), kept);
    assert!(!folder.join("spike/student").exists());

    let settings = [
        "train.learning_rate=1e19",
        "train.lr_scheduler_type=constant",
        "train.warmup_ratio=0",
        "train.max_grad_norm=0",
        "train.save_steps=1",
    ];
    let parts = ["gradient norm", "the last checkpoint is kept", "train.learning_rate", "row-"];
    train(folder, "nan", &settings).expect_code(1).expect_stderr(&parts);
    assert!(!steps(&folder.join("nan")).is_empty() && !folder.join("nan/student").exists());
}
