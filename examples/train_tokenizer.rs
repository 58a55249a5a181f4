//! Trains the primer's byte-level BPE tokenizer: `train_tokenizer INPUT.txt OUTPUT_DIR VOCAB_SIZE`.
//!
//! Numbers are split into digits (the first takes the space before it), so that arithmetic is digit by digit. The
//! special tokens are ChatML's. Used by `scripts/make_primer.sh`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// End of text, and ChatML's turn markers.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// One digit, a word, a run of other signs (each with the space before it), or white space.
const PATTERN: &str = r" ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, vocab_size] = &arguments[..] else {
        return Err(anyhow!("usage: train_tokenizer INPUT.txt OUTPUT_DIR VOCAB_SIZE"));
    };
    let fail = |error: Box<dyn std::error::Error + Send + Sync>| anyhow!("{error}");
    let split =
        Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default().into())
    .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()]).into()))
    .with_decoder(Some(bytes.into()))
    .build()
    .map_err(fail)?;
    let special: Vec<AddedToken> = SPECIAL.iter().map(|text| AddedToken::from(*text, true)).collect();
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size.parse()?)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special)
        .build()
        .into();
    tokenizer.train_from_files(&mut trainer, vec![input.clone()]).map_err(fail)?;
    let folder = PathBuf::from(output);
    std::fs::create_dir_all(&folder)?;
    tokenizer.save(folder.join("tokenizer.json"), true).map_err(fail)?;
    Ok(())
}
