//! The container: what is written is read again, and what is damaged is refused by name and place.

use std::fs;

use proptest::prelude::*;

use super::*;

const KINDS: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * (1.0 + (i % 13) as f32 / 7.0)).collect()
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("a.number", 7usize);
    metadata.set("a.large", Value::Unsigned(1 << 40));
    metadata.set("a.signed", Value::Signed(-5));
    metadata.set("a.float", 1e-5);
    metadata.set("a.flag", true);
    metadata.set("a.texts", Value::Texts(vec!["ein".into(), "日本".into(), String::new()]));
    metadata.set("a.integers", Value::Integers(vec![1, -2, 3]));
    metadata.set("a.floats", Value::Floats(vec![0.5, -1.25]));
    metadata
}

/// A file with one tensor of every type, its path and its plan.
fn every_type(folder: &std::path::Path) -> (std::path::PathBuf, Vec<TensorPlan>) {
    let path = folder.join("every.gguf");
    let plans: Vec<TensorPlan> =
        KINDS.iter().map(|&kind| TensorPlan { name: kind.name(), shape: vec![3, 512], kind }).collect();
    write(&path, &metadata(), &plans, |number| quantize(KINDS[number], &values(3 * 512), 512)).unwrap();
    (path, plans)
}

fn error_of(bytes: &[u8]) -> String {
    format!("{:#}", Header::parse(bytes).expect_err("the bytes are no GGUF file"))
}

#[test]
fn what_is_written_is_read_again_with_every_type_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plans) = every_type(folder.path());
    let file = GgufFile::open(&path).unwrap();
    assert_eq!((file.header.version, &file.header.metadata), (3, &metadata()));
    let source = values(3 * 512);
    for plan in &plans {
        let info = file.tensor(&plan.name).unwrap();
        assert_eq!((info.kind, &info.shape), (plan.kind, &plan.shape));
        let mut whole = vec![f32::NAN; source.len()];
        file.read(info, &mut whole).unwrap();
        let len = plan.kind.block().unwrap().0;
        for (source, whole) in source.chunks(len).zip(whole.chunks(len)) {
            let bound = error_bound(plan.kind, source);
            for (source, got) in source.iter().zip(whole) {
                assert!((source - got).abs() <= bound, "{}: {got} for {source}, bound {bound}", plan.name);
            }
        }
        let mut rows = vec![f32::NAN; 1024];
        file.read_rows(info, 1, &mut rows).unwrap();
        assert_eq!(rows, whole[512..], "{}: two rows of three", plan.name);
        assert!(file.read_rows(info, 2, &mut rows).is_err(), "there is one row after row 2");
    }
}

#[test]
fn blocks_have_the_sizes_that_ggml_gives_them() {
    let sizes = [
        (TensorType::Q4_0, 32, 18),
        (TensorType::Q8_0, 32, 34),
        (TensorType::Q4K, 256, 144),
        (TensorType::Q5K, 256, 176),
        (TensorType::Q6K, 256, 210),
    ];
    for (kind, len, bytes) in sizes {
        assert_eq!(kind.block(), Some((len, bytes)), "{}", kind.name());
        assert_eq!(TensorType::from_id(kind.id()), kind);
    }
    assert_eq!(TensorType::from_id(23), TensorType::Other(23));
    assert_eq!(TensorType::Other(23).block(), None);
}

#[test]
fn values_that_no_type_can_hold_are_refused() {
    let error = quantize(TensorType::Q8_0, &[f32::NAN; 32], 32).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
    let error = quantize(TensorType::F16, &[1e6; 4], 4).unwrap_err().to_string();
    assert!(error.contains("F16") && error.contains("bf16"), "{error}");
    assert!(quantize(TensorType::Q8_0, &[0.0; 48], 48).is_err(), "half a block");
}

#[test]
fn damage_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(every_type(folder.path()).0).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        error_of(&damaged)
    };
    for (error, expected) in [
        (error_of(b""), "magic"),
        (with(0, b"GGML"), "expected `GGUF`"),
        (with(4, &1u32.to_le_bytes()), "version 1"),
        (with(4, &3u32.to_be_bytes()), "big-endian"),
        (with(4, &9u32.to_le_bytes()), "version 9"),
        (with(8, &u64::MAX.to_le_bytes()), "18446744073709551615 tensors"),
        (with(16, &(1u64 << 60).to_le_bytes()), "metadata keys"),
        (with(24, &u64::MAX.to_le_bytes()), "metadata pair 0"),
        (error_of(&whole[..whole.len() - 4096]), "was a download cut short?"),
        (error_of(&whole[..40]), "was a download cut short?"),
    ] {
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
    let error = GgufFile::open(&folder.path().join("none.gguf")).err().unwrap().to_string();
    assert!(error.contains("none.gguf"), "{error}");
    fs::write(folder.path().join("text.gguf"), "no model at all").unwrap();
    let error = format!("{:#}", GgufFile::open(&folder.path().join("text.gguf")).err().unwrap());
    assert!(error.contains("text.gguf") && error.contains("expected `GGUF`"), "{error}");
}

#[test]
fn a_type_that_is_not_known_fails_only_where_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    let plan = [TensorPlan { name: "x".into(), shape: vec![4], kind: TensorType::F32 }];
    write(&path, &Metadata::default(), &plan, |_| Ok(vec![0; 16])).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // magic, version, two counts, the name's length and the name, one dimension
    let at = 4 + 4 + 8 + 8 + 8 + 1 + 4 + 8;
    assert_eq!(bytes[at], 0);
    bytes[at] = 23;
    fs::write(&path, bytes).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let error = format!("{:#}", file.read(file.tensor("x").unwrap(), &mut [0.0; 4]).unwrap_err());
    assert!(error.contains("`x`") && error.contains("type 23"), "{error}");
}

#[test]
fn a_value_of_another_type_is_named_by_its_key() {
    let metadata = metadata();
    let error = metadata.text("a.number").unwrap_err().to_string();
    assert!(error.contains("`a.number`") && error.contains("expected a text"), "{error}");
    assert!(metadata.unsigned("a.signed").is_err());
    assert_eq!(metadata.float("a.number").unwrap(), Some(7.0));
    assert_eq!(metadata.flag("not.there").unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever is cut off or changed, the answer is a header or an error.
    #[test]
    fn damaged_headers_never_panic(cut in 0usize..4000, at in 0usize..1200, byte: u8, word: u64, wide: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(every_type(folder.path()).0).unwrap();
        if wide {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        } else {
            bytes[at] ^= byte;
        }
        let len = bytes.len();
        for bytes in [&bytes[..], &bytes[..len - cut], &bytes[..cut]] {
            if let Ok(header) = Header::parse(bytes) {
                for tensor in &header.tensors {
                    prop_assert!(tensor.bytes.end <= bytes.len());
                }
            }
        }
    }
}
