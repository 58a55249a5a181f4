//! How text is cut before BPE merges, by the names that `tokenizer.ggml.pre` uses.
//!
//! llama.cpp has the rules in its code and only their names in the file. Here are those that the supported
//! architectures use, as the `tokenizer.json` of their models has them.
//!
//! **Source**: `llama_vocab::impl::load` and `llm_tokenizer_bpe` of llama.cpp (names and expressions); the
//! `tokenizer.json` of Llama 3, Qwen 2, SmolLM 2, GPT-2 and Mistral Nemo (spelling).

use serde_json::{Value, json};

/// One step of cutting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Every digit for itself.
    Digits,
    /// Matches are pieces, and so is what lies between them.
    Regex(&'static str),
}

/// A named rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Names in files; the first is the one that is written.
    pub names: &'static [&'static str],
    cuts: &'static [Cut],
    /// Whether GPT-2's own expression cuts last.
    gpt2: bool,
    /// Whether a piece that is in the vocabulary is taken whole, without merging.
    pub ignore_merges: bool,
    /// Whether text begins with the BOS token where the file does not say.
    pub add_bos: bool,
    /// Whether the model's own tokenizer composes characters first (llama.cpp does not).
    pub nfc: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// All rules.
pub(super) const RULES: [PreTokenizer; 7] = [
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        cuts: &[Cut::Regex(LLAMA3)],
        gpt2: false,
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        cuts: &[Cut::Regex(QWEN2)],
        gpt2: false,
        ignore_merges: false,
        add_bos: false,
        nfc: true,
    },
    PreTokenizer {
        names: &["stablelm2"],
        cuts: &[Cut::Regex(QWEN2)],
        gpt2: false,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        cuts: &[Cut::Digits],
        gpt2: true,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"],
        cuts: &[],
        gpt2: true,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["tekken"],
        cuts: &[Cut::Regex(TEKKEN)],
        gpt2: false,
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
    PreTokenizer {
        names: &["default"],
        cuts: &[
            Cut::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Cut::Regex(GPT2),
            Cut::Regex(r"\p{N}+"),
            Cut::Regex("[0-9][0-9][0-9]"),
        ],
        gpt2: false,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
];

/// The rule of a name.
pub(super) fn named(name: &str) -> Option<&'static PreTokenizer> {
    RULES.iter().find(|rule| rule.names.contains(&name))
}

impl PreTokenizer {
    /// The pre-tokenizer as `tokenizer.json` has it.
    pub(super) fn json(&self) -> Value {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": self.gpt2});
        if self.cuts.is_empty() {
            return byte_level;
        }
        let mut steps: Vec<Value> = self
            .cuts
            .iter()
            .map(|cut| match cut {
                Cut::Digits => json!({"type": "Digits", "individual_digits": true}),
                Cut::Regex(regex) => {
                    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
                }
            })
            .collect();
        steps.push(byte_level);
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// Whether the parts of a `tokenizer.json` that lie before the merges say the same as this rule.
    pub(super) fn is(&self, normalizer: &Value, pre_tokenizer: &Value, ignore_merges: bool) -> bool {
        let normalizes = normalizer["type"] == "NFC";
        let mut asked = pre_tokenizer.clone();
        forget_offsets(&mut asked);
        let mut own = self.json();
        forget_offsets(&mut own);
        asked == own
            && ignore_merges == self.ignore_merges
            && normalizes == self.nfc
            && (normalizes || normalizer.is_null())
    }
}

/// Offsets do not change which tokens there are.
fn forget_offsets(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.shift_remove("trim_offsets");
            map.values_mut().for_each(forget_offsets);
        }
        Value::Array(values) => values.iter_mut().for_each(forget_offsets),
        _ => {}
    }
}
