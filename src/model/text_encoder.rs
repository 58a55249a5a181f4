//! Encoders of the BERT family: a text to one vector of length one.
//!
//! Curation asks it which questions mean the same. Texts are encoded one by one, without padding, so that a vector depends
//! on its text alone; several may be encoded at once from different threads.
//!
//! **Source**: Devlin et al. 2019 (BERT, post-norm); mean pooling as in Sentence-BERT, Reimers and Gurevych 2019.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device, Tensor};
use serde::Deserialize;

use crate::{
    language_model::{ModelIdentity, TextEncoder},
    model_dir,
    tokenizer::Tokenizer,
};

/// `config.json` of a BERT, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
struct Shape {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_act")]
    hidden_act: String,
}

fn default_eps() -> f64 {
    1e-12
}

fn default_act() -> String {
    "gelu".into()
}

/// `1_Pooling/config.json` of sentence-transformers: what of the last layer stands for the text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pooling {
    pooling_mode_cls_token: bool,
    pooling_mode_max_tokens: bool,
}

/// A BERT on the CPU in f32.
pub struct BertEncoder {
    shape: Shape,
    pools_first: bool,
    tokenizer: Tokenizer,
    identity: ModelIdentity,
    tensors: HashMap<String, Tensor>,
}

impl BertEncoder {
    /// Loads a directory or `org/name` of the Hugging Face cache.
    ///
    /// **Errors**: usage, when it is not found; a model of another family; a file that is damaged or lacks a tensor.
    pub fn load(model: &str) -> Result<Self> {
        let directory = model_dir::resolve(model)?;
        let path = directory.join("config.json");
        let named = || format!("`{}`", path.display());
        let shape: Shape = serde_json::from_slice(&std::fs::read(&path).with_context(named)?).with_context(named)?;
        ensure!(
            shape.model_type == "bert",
            "`{}` is a model of type `{}`; an encoder must be a `bert`, such as sentence-transformers/all-MiniLM-L6-v2",
            directory.display(),
            shape.model_type
        );
        let heads = shape.num_attention_heads;
        ensure!(
            heads > 0 && shape.hidden_size.is_multiple_of(heads),
            "{}: hidden_size is no multiple of the heads",
            named()
        );
        let pooling = directory.join("1_Pooling/config.json");
        let pooling: Pooling = match std::fs::read(&pooling) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("`{}`", pooling.display()))?,
            Err(_) => Pooling::default(),
        };
        ensure!(!pooling.pooling_mode_max_tokens, "`{}` pools by maximum, which is not read", directory.display());
        let mut tensors = HashMap::new();
        for file in model_dir::weight_files(&directory)? {
            for (name, tensor) in candle_core::safetensors::load(&file, &Device::Cpu)
                .with_context(|| format!("cannot read `{}`", file.display()))?
            {
                let name = name.strip_prefix("bert.").unwrap_or(&name).to_owned();
                if tensor.dtype().is_float() {
                    tensors.insert(name, tensor.to_dtype(DType::F32)?);
                }
            }
        }
        let identity = ModelIdentity {
            name: model.to_owned(),
            hash: model_dir::hash_model(&directory)?,
            num_parameters: tensors.values().map(Tensor::elem_count).sum(),
            dtype: "f32".into(),
        };
        let tokenizer = Tokenizer::load(&directory)?;
        let encoder = Self { shape, pools_first: pooling.pooling_mode_cls_token, tokenizer, identity, tensors };
        // What is missing is found now and not after hours.
        encoder.encode("a").with_context(|| format!("`{}` is no whole encoder", directory.display()))?;
        Ok(encoder)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("the weights have no `{name}`"))
    }

    /// `x · wᵀ + b`. x `[T, in]`, result `[T, out]`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let product = x.matmul(&self.tensor(&format!("{name}.weight"))?.t()?)?;
        Ok(product.broadcast_add(self.tensor(&format!("{name}.bias"))?)?)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.shape.layer_norm_eps)?.sqrt()?;
        let scaled = centred.broadcast_div(&deviation)?.broadcast_mul(self.tensor(&format!("{name}.weight"))?)?;
        Ok(scaled.broadcast_add(self.tensor(&format!("{name}.bias"))?)?)
    }

    /// The last hidden state `[T, C]` of token ids.
    fn hidden(&self, ids: &[u32]) -> Result<Tensor> {
        let tokens = Tensor::new(ids, &Device::Cpu)?;
        let places = self.tensor("embeddings.position_embeddings.weight")?.narrow(0, 0, ids.len())?;
        let kind = self.tensor("embeddings.token_type_embeddings.weight")?.get(0)?;
        let words = self.tensor("embeddings.word_embeddings.weight")?.index_select(&tokens, 0)?;
        let mut x = self.layer_norm(&(words + places)?.broadcast_add(&kind)?, "embeddings.LayerNorm")?;
        for layer in 0..self.shape.num_hidden_layers {
            let at = |part: &str| format!("encoder.layer.{layer}.{part}");
            let mixed = self.linear(&self.attention(&x, layer)?, &at("attention.output.dense"))?;
            x = self.layer_norm(&(x + mixed)?, &at("attention.output.LayerNorm"))?;
            let inner = self.linear(&x, &at("intermediate.dense"))?;
            let inner = match self.shape.hidden_act.as_str() {
                "gelu" => inner.gelu_erf()?,
                "gelu_new" | "gelu_pytorch_tanh" => inner.gelu()?,
                "relu" => inner.relu()?,
                other => bail!("the activation `{other}` is not known"),
            };
            let outer = self.linear(&inner, &at("output.dense"))?;
            x = self.layer_norm(&(x + outer)?, &at("output.LayerNorm"))?;
        }
        Ok(x)
    }

    /// Self-attention of one text. x `[T, C]`, result `[T, C]`.
    fn attention(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let heads = self.shape.num_attention_heads;
        let (count, hidden) = x.dims2()?;
        let split = |part: &str| -> Result<Tensor> {
            let name = format!("encoder.layer.{layer}.attention.self.{part}");
            Ok(self.linear(x, &name)?.reshape((count, heads, hidden / heads))?.transpose(0, 1)?.contiguous()?)
        };
        let (query, key, value) = (split("query")?, split("key")?, split("value")?); // [H, T, D]
        let scale = ((hidden / heads) as f64).sqrt();
        let scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? / scale)?; // [H, T, T]
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        Ok(weights.matmul(&value)?.transpose(0, 1)?.reshape((count, hidden))?)
    }
}

impl TextEncoder for BertEncoder {
    fn encode(&self, text: &str) -> Result<Vec<f32>> {
        let mut ids = self.tokenizer.encode(text, true)?;
        let (Some(&last), most) = (ids.last(), self.shape.max_position_embeddings) else {
            bail!("the tokenizer makes nothing of `{text}`")
        };
        if ids.len() > most {
            // As transformers truncates: the closing token stays.
            ids.truncate(most);
            ids[most - 1] = last;
        }
        let hidden = self.hidden(&ids)?;
        let pooled = if self.pools_first { hidden.get(0)? } else { hidden.mean(0)? };
        let mut vector = pooled.to_vec1::<f32>()?;
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        ensure!(length.is_finite() && length > 0.0, "the vector of a text has no length");
        vector.iter_mut().for_each(|value| *value /= length);
        Ok(vector)
    }

    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[derive(Deserialize)]
    struct Expected {
        text: String,
        vector: Vec<f32>,
    }

    fn fixture() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert")
    }

    #[test]
    fn vectors_are_those_of_transformers() -> Result<()> {
        let encoder = BertEncoder::load(&fixture().to_string_lossy())?;
        let expected: Vec<Expected> = crate::records::read_json(&fixture().join("expected.json"))?;
        assert!(expected.len() >= 4);
        for Expected { text, vector } in expected {
            let found = encoder.encode(&text)?;
            assert_eq!(found.len(), vector.len());
            let worst = found.iter().zip(&vector).map(|(found, vector)| (found - vector).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "`{}`: {worst}", text.chars().take(40).collect::<String>());
            let again = encoder.encode(&text)?;
            assert!(found.iter().zip(&again).all(|(one, other)| one.to_bits() == other.to_bits()));
        }
        Ok(())
    }

    #[test]
    fn another_family_and_a_missing_tensor_are_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for file in ["tokenizer.json", "config.json"] {
            std::fs::copy(fixture().join(file), folder.path().join(file))?;
        }
        let tensor = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&HashMap::from([("other".to_owned(), tensor)]), path)?;
        let load = || BertEncoder::load(&folder.path().to_string_lossy()).err().map(|error| format!("{error:#}"));
        assert!(load().is_some_and(|error| error.contains("no `embeddings.")), "{:?}", load());
        let config = std::fs::read_to_string(fixture().join("config.json"))?;
        std::fs::write(folder.path().join("config.json"), config.replace("\"bert\"", "\"llama\""))?;
        assert!(load().is_some_and(|error| error.contains("`llama`")), "{:?}", load());
        Ok(())
    }
}
