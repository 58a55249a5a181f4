//! GGUF in and out: what is exported computes what its source computes, files of others load, damage is an error.

use std::{fs, path::Path};

use candle_core::Device;
use glan::{
    commands::export::{self, ExportArgs, Exported, Format},
    device::DtypeChoice,
    gguf::GgufFile,
    model::{self, Decoder, DecoderConfig, InferenceDecoder, Layout, Quantization},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

use super::{
    chat_templates::shared,
    parity::{self, Expected, FAMILIES},
    support::glan,
    tolerance,
};

fn arguments(model: &Path, output: &Path) -> ExportArgs {
    ExportArgs {
        model: model.to_str().unwrap().to_owned(),
        output: output.to_owned(),
        format: Format::Gguf,
        quantization: None,
        dtype: None,
        force: false,
        json: false,
    }
}

fn export_as(model: &Path, output: &Path, quantization: Quantization) -> Exported {
    export::run(&ExportArgs { quantization: Some(quantization), ..arguments(model, output) }).unwrap()
}

fn load(path: &Path) -> InferenceDecoder {
    InferenceDecoder::load(path, &Device::Cpu, DtypeChoice::F32).unwrap()
}

/// Greedy tokens after `prompt`, which they include.
fn greedy(model: &InferenceDecoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut cache = model.kv_cache(64, 8).unwrap();
    let mut ids = prompt.to_vec();
    let mut next = parity::argmax(parity::step(model, &mut cache, prompt, 0).last().unwrap());
    for _ in 0..count {
        ids.push(next);
        next = parity::argmax(&parity::step(model, &mut cache, &[next], ids.len() - 1)[0]);
    }
    ids
}

#[test]
fn every_family_in_f32_computes_what_transformers_computes() {
    let folder = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let path = folder.path().join(format!("{family}.gguf"));
        let exported = export_as(&parity::fixture(family), &path, Quantization::F32);
        assert_eq!(exported.checks.top1_agree, exported.checks.positions, "{family}");
        let (model, source) = (load(&path), parity::fixture(family));
        let config = DecoderConfig::load(&source).unwrap();
        assert_eq!(model.config.sliding_window, config.sliding_window, "{family}");
        assert_eq!(model.config.rope_scaling, config.rope_scaling, "{family}");
        assert_eq!(model.config.rms_norm_eps, config.rms_norm_eps, "{family}");
        assert!(config.eos_token_ids.iter().all(|id| model.config.eos_token_ids.contains(id)), "{family}");
        let expected: Expected = parity::read(family, "expected.json");
        for (prompt, logits) in expected.prompts.iter().zip(&expected.logits) {
            let got = parity::step(&model, &mut model.kv_cache(16, 8).unwrap(), prompt, 0);
            for (got, expected) in got[got.len() - logits.len()..].iter().zip(logits) {
                tolerance::close(family, got, expected, tolerance::LOGITS);
            }
        }
    }
}

/// A random model whose rows are long enough for the blocks of k-quants, with the tokenizer of a fixture.
fn wide_model(folder: &Path) {
    let config = json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "initializer_range": 0.05, "eos_token_id": 2
    });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let model = Decoder::random(DecoderConfig::load(folder).unwrap(), 7).unwrap();
    model::export(&model, folder, safetensors::Dtype::F32, &[2]).unwrap();
    Tokenizer::copy_files(&parity::fixture("llama"), folder).unwrap();
}

#[test]
fn every_quantization_keeps_the_logits_within_its_error_and_mixes_types_as_llama_cpp_does() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wide");
    wide_model(&source);
    // Type of most matrices, of the head, of v_proj by layer, largest relative error of a type's tensors.
    for (quantization, most, head, values, error) in [
        (Quantization::F32, "F32", "F32", ["F32"; 4], 0.0),
        (Quantization::F16, "F16", "F16", ["F16"; 4], 5e-4),
        (Quantization::Bf16, "BF16", "BF16", ["BF16"; 4], 4e-3),
        (Quantization::Q8_0, "Q8_0", "Q8_0", ["Q8_0"; 4], 0.01),
        (Quantization::Q6K, "Q6_K", "Q6_K", ["Q6_K"; 4], 0.03),
        (Quantization::Q5KM, "Q5_K", "Q6_K", ["Q5_K", "Q5_K", "Q6_K", "Q6_K"], 0.06),
        (Quantization::Q4KM, "Q4_K", "Q6_K", ["Q4_K", "Q4_K", "Q6_K", "Q6_K"], 0.12),
        (Quantization::Q4_0, "Q4_0", "Q6_K", ["Q4_0"; 4], 0.15),
    ] {
        let path = folder.path().join(format!("{quantization:?}.gguf"));
        let exported = export_as(&source, &path, quantization);
        let name = format!("{quantization:?}: {:?}", exported.checks);
        for check in &exported.checks.tensors {
            assert!(check.relative_error <= error, "{name}");
        }
        // The logits' error is a small multiple of the weights'.
        let checks = &exported.checks;
        assert!(checks.logits_max_abs_diff <= 4.0 * error as f32 * checks.logits_max_abs + 1e-5, "{name}");
        let file = GgufFile::open(&path).unwrap();
        let kind = |tensor: &str| file.tensor(tensor).unwrap().kind.name();
        assert_eq!((kind("blk.1.ffn_up.weight").as_str(), kind("output.weight").as_str()), (most, head), "{name}");
        let got: Vec<String> = (0..4).map(|layer| kind(&format!("blk.{layer}.attn_v.weight"))).collect();
        assert_eq!(got, values, "{name}");
        assert_eq!(kind("blk.0.attn_norm.weight"), "F32", "vectors are never packed");
    }
}

#[test]
fn a_directory_made_from_a_gguf_file_is_the_first_model_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = parity::fixture("llama3");
    let (file, again) = (folder.path().join("a.gguf"), folder.path().join("again"));
    export_as(&source, &file, Quantization::F32);
    let args = ExportArgs { format: Format::Safetensors, ..arguments(&file, &again) };
    let exported = export::run(&args).unwrap();
    assert_eq!(exported.checks.logits_max_abs_diff, 0.0, "{:?}", exported.checks);
    let arena = |path: &Path| Decoder::load(path, &Device::Cpu, DtypeChoice::F32).unwrap();
    let (first, last) = (arena(&source), arena(&again));
    let bits = |model: &Decoder| -> Vec<u32> {
        glan_kernels::to_vec(&model.weights.arena).unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&first), bits(&last));
    assert_eq!(first.config.rope_scaling, last.config.rope_scaling);
    let (before, after) = (Tokenizer::load(&source).unwrap(), Tokenizer::load(&again).unwrap());
    assert_eq!(before.named_tokens(), after.named_tokens());
    assert_eq!(before.encode("t3 t4 t5", true).unwrap(), after.encode("t3 t4 t5", true).unwrap());
    // f16 is rounded once and then stays.
    let half = folder.path().join("half");
    let args = ExportArgs { dtype: Some(export::ExportDtype::F16), ..arguments(&file, &half) };
    export::run(&ExportArgs { format: Format::Safetensors, ..args }).unwrap();
    assert_eq!(load(&half).config.raw["torch_dtype"], "float16");
}

#[test]
fn the_executable_takes_a_gguf_file_wherever_it_takes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = parity::fixture("llama").to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| glan(folder.path(), arguments);
    let out = run(&["export", "--model", &source, "--output", "m/a.gguf", "--quantization", "f32", "--json"]);
    let out: Value = serde_json::from_str(&out.expect_code(0).stdout).unwrap();
    assert_eq!((&out["quantization"], &out["output"]), (&json!("f32"), &json!("m/a.gguf")));
    let rest: Vec<_> = fs::read_dir(folder.path().join("m")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest, ["a.gguf"], "the temporary file is gone");

    fs::write(folder.path().join("r.jsonl"), "{\"id\": \"1\", \"prompt\": \"t3 t4 t5\", \"max_tokens\": 12}\n")
        .unwrap();
    for (model, output) in [(source.as_str(), "1.jsonl"), ("m/a.gguf", "2.jsonl"), ("m", "3.jsonl")] {
        run(&["complete", "--model", model, "--requests", "r.jsonl", "--output", output]).expect_code(0);
    }
    let text = |name: &str| -> Value {
        let row: Value = serde_json::from_str(&fs::read_to_string(folder.path().join(name)).unwrap()).unwrap();
        row["text"].clone()
    };
    assert!(text("1.jsonl").is_string());
    assert_eq!(text("1.jsonl"), text("2.jsonl"));
    assert_eq!(text("1.jsonl"), text("3.jsonl"), "a directory that holds one file stands for it");

    for arguments in [&["inspect", "--model", "m/a.gguf", "--json"][..], &["inspect", "m/a.gguf", "--json"]] {
        let found: Value = serde_json::from_str(&run(arguments).expect_code(0).stdout).unwrap();
        assert_eq!(found["model_type"], "llama");
        assert_eq!(found["metadata"]["general.architecture"], "llama");
        assert_eq!(found["tensor_types"]["F32"]["tensors"], 21);
        assert_eq!(found["has_chat_template"], true);
        assert_eq!(found["unsupported"], Value::Null);
    }
    run(&["inspect", "m/a.gguf"]).expect_code(0);
}

#[test]
fn nothing_is_overwritten_unasked_and_a_failure_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| glan(folder.path(), arguments);
    let source = parity::fixture("llama").to_str().unwrap().to_owned();
    let export = ["export", "--model", &source, "--output", "a.gguf"];
    run(&export).expect_code(0);
    let first = fs::read(folder.path().join("a.gguf")).unwrap();
    run(&export).expect_code(2).expect_stderr(&["a.gguf", "--force"]);
    run(&[&export[..], &["--force", "--quantization", "f16"]].concat()).expect_code(0);
    assert_ne!(fs::read(folder.path().join("a.gguf")).unwrap(), first);
    run(&["export", "--model", "a.gguf", "--output", "a.gguf", "--force"]).expect_code(2).expect_stderr(&["itself"]);

    // A weight that no packed type can hold.
    let broken = folder.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(parity::fixture("llama").join(file), broken.join(file)).unwrap();
    }
    let weights = broken.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    run(&["export", "--model", "broken", "--output", "b.gguf"]).expect_code(1).expect_stderr(&["NaN", "tensor `"]);
    let names: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("b.gguf")), "{names:?}");
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    export_as(&parity::fixture("qwen2"), &path, Quantization::Q8_0);
    let whole = fs::read(&path).unwrap();
    let target = folder.path().join("damaged.gguf");
    let read = |bytes: &[u8]| {
        fs::write(&target, bytes).unwrap();
        let tokenizer = Tokenizer::load(&target).map(drop);
        let config = DecoderConfig::load(&target);
        let weights = match &config {
            Ok(config) => {
                let layout = Layout::new(config);
                model::load_arena(&target, &layout, DtypeChoice::F32).map(drop)
            }
            Err(_) => Ok(()),
        };
        [tokenizer.err(), config.err(), weights.err()].into_iter().flatten().map(|error| format!("{error:#}")).next()
    };
    assert_eq!(read(&whole), None);
    for cut in (0..whole.len()).step_by(whole.len() / 60) {
        let error = read(&whole[..cut]).expect("a cut file is an error");
        assert!(error.contains("damaged.gguf"), "{error}");
    }
    // Linear congruences stand for chance, so that a failure comes again.
    let mut state = 12345u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..400 {
        let mut bytes = whole.clone();
        let at = next(6000.min(bytes.len()));
        bytes[at] ^= 1 << next(8);
        read(&bytes);
        let at = next(3000);
        bytes[at..at + 8].copy_from_slice(&[0xFF; 8]);
        read(&bytes);
    }
}

#[test]
fn stories260k_says_the_same_in_every_form() {
    let Some(folder) = shared().map(|shared| shared.join("models/stories260K")) else {
        eprintln!("skipped: no folder of shared models");
        return;
    };
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let f32_file = folder.join("stories260K-f32.gguf");
    for path in [&folder, &f32_file] {
        let (model, tokenizer) = (load(path), Tokenizer::load(path).unwrap());
        for case in expected["generation"].as_array().unwrap() {
            let prompt = ids(&case["prompt_ids"]);
            assert_eq!(tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap(), prompt);
            let all = ids(&case["ids"]);
            assert_eq!(greedy(&model, &prompt, all.len() - prompt.len()), all, "{}", path.display());
        }
        for case in expected["tokenizer"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text}");
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    for form in ["f32", "q8_0", "q4_0"] {
        // Of the others' file, and of what is unpacked from it and written again: nothing more is lost.
        let file = folder.join(format!("stories260K-{form}.gguf"));
        let (again, directory) = (scratch.path().join(format!("{form}.gguf")), scratch.path().join(form));
        export_as(&file, &again, Quantization::F32);
        export::run(&ExportArgs { format: Format::Safetensors, ..arguments(&file, &directory) }).unwrap();
        let reference = ids(&expected["gguf_greedy_from_bos"][form]);
        for path in [&file, &again, &directory] {
            assert_eq!(greedy(&load(path), &[1], reference.len() - 1), reference, "{}", path.display());
        }
    }
}

#[test]
fn gpt_2s_vocabulary_file_gives_the_ids_that_llama_cpp_recorded() {
    let Some(folder) = shared().map(|shared| shared.join("models/gpt2-tokenizer")) else {
        eprintln!("skipped: no folder of shared models");
        return;
    };
    let tokenizer = Tokenizer::load(&folder.join("ggml-vocab-gpt-2.gguf")).unwrap();
    let texts = fs::read_to_string(folder.join("ggml-vocab-gpt-2.gguf.inp")).unwrap();
    let ids = fs::read_to_string(folder.join("ggml-vocab-gpt-2.gguf.out")).unwrap();
    let mut count = 0;
    for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
        let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        count += 1;
    }
    assert!(count > 20, "{count} texts");
}

#[test]
fn real_tokenizers_come_back_from_metadata_with_their_golden_ids() {
    let Some(folder) = shared().map(|shared| shared.join("models")) else {
        eprintln!("skipped: no folder of shared models");
        return;
    };
    let golden: Value =
        serde_json::from_slice(&fs::read(folder.join("golden/tokenizers_and_chat.json")).unwrap()).unwrap();
    for (name, pre) in [("gpt2-tokenizer", "gpt-2"), ("smollm2-tokenizer", "smollm")] {
        let tokenizer = Tokenizer::load(&folder.join(name)).unwrap();
        let described = tokenizer.gguf_metadata(tokenizer.vocab_size() + 5).unwrap();
        assert_eq!(described.metadata.text("tokenizer.ggml.pre").unwrap(), Some(pre));
        assert_eq!(described.note, None, "{name}");
        let again = Tokenizer::from_gguf(&described.metadata).unwrap().unwrap();
        for case in golden["tokenizers"][name].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(again.encode(text, false).unwrap(), ids, "{name}: {text}");
        }
    }
}
