//! A GPT-NeoX `config.json` in the spelling of any year, checked; and the shapes that follow from
//! it.

mod fields;
mod generation;
mod rotary;
mod spelling;

use serde_json::{Map, Value, json};

use self::fields::Fields;
use self::rotary::rotary;
use crate::activation::Activation;
use crate::error::{Error, Result};

/// The field of the tokens that end a sequence.
const EOS: &str = "eos_token_id";
/// The head's name in a checkpoint.
pub(crate) const HEAD: &str = "embed_out.weight";

/// A GPT-NeoX model's shape and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Share of each head's dimensions that have rotary embeddings.
    pub rotary_pct: f64,
    /// The base of the rotary frequencies.
    pub rotary_emb_base: f64,
    /// The longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Attention and MLP read the same residual (`true`), or the MLP follows attention (`false`).
    pub use_parallel_residual: bool,
    /// The head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// `query_key_value` and `dense` have biases.
    pub attention_bias: bool,
    /// The share of attention's weights that transformers drops in training; answers drop none.
    pub attention_dropout: f64,
    /// The share of each layer's values that transformers drops in training; answers drop none.
    pub hidden_dropout: f64,
    /// Begin of sequence, if it is configured.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a sequence, as `generation_config.json` has them, else `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Padding, if it is configured.
    pub pad_token_id: Option<u32>,
}

impl Config {
    /// Reads a `config.json`. Absent fields have the defaults of transformers' GPT-NeoX
    /// configuration.
    ///
    /// # Errors
    /// The text is not JSON, has another `model_type`, a field of a wrong type or range, or a
    /// feature that would change the numbers or the answers (rotary scaling, forced tokens).
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).map_err(|source| Error::Json {
            what: "config.json".into(),
            source,
        })?;
        let Value::Object(map) = value else {
            return Err(Error::Config("config.json is not an object".into()));
        };
        let fields = Fields(&map);
        if let Some(kind) = fields.get("model_type")
            && kind != "gpt_neox"
        {
            return Err(Error::Config(format!("model_type {kind} is not gpt_neox")));
        }
        if let Some(Value::Object(heads)) = fields.get("pruned_heads")
            && !heads.is_empty()
        {
            let reason = "pruned_heads is not supported: every head is computed";
            return Err(Error::Config(reason.into()));
        }
        generation::check("config.json", &fields)?;
        let (rotary_pct, rotary_emb_base) = rotary(&fields)?;
        let hidden_size = fields.count("hidden_size", Some(6144))?;
        let config = Self {
            vocab_size: fields.count("vocab_size", Some(50432))?,
            hidden_size,
            num_hidden_layers: fields.count("num_hidden_layers", Some(44))?,
            num_attention_heads: fields.count("num_attention_heads", Some(64))?,
            intermediate_size: fields.count("intermediate_size", Some(4 * hidden_size))?,
            hidden_act: Activation::parse(fields.text("hidden_act", "gelu")?)?,
            rotary_pct,
            rotary_emb_base,
            max_position_embeddings: fields.count("max_position_embeddings", Some(2048))?,
            layer_norm_eps: fields.number("layer_norm_eps", 1e-5)?,
            use_parallel_residual: fields.flag("use_parallel_residual", true)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            attention_bias: fields.flag("attention_bias", true)?,
            attention_dropout: fields.number("attention_dropout", 0.0)?,
            hidden_dropout: fields.number("hidden_dropout", 0.0)?,
            bos_token_id: fields.id("bos_token_id", Some(0))?,
            eos_token_ids: fields.ids(EOS, &[2])?,
            pad_token_id: fields.id("pad_token_id", None)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Takes over what a `generation_config.json` says of the model: the tokens that end a
    /// sequence, if it has any.
    ///
    /// # Errors
    /// The text is not a JSON object, they are not token ids, or a rule that forbids or forces
    /// tokens is set.
    pub(crate) fn read_generation(&mut self, bytes: &[u8]) -> Result<()> {
        let map: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|source| Error::Json {
                what: "generation_config.json".into(),
                source,
            })?;
        let fields = Fields(&map);
        generation::check("generation_config.json", &fields)?;
        if fields.get(EOS).is_some() {
            self.eos_token_ids = fields.ids(EOS, &[])?;
        }
        Ok(())
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Config(reason));
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > 1 << 24 {
                return refuse(format!("{name} {value} is out of range"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse(format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if !self.rotary_pct.is_finite() || self.rotary_pct <= 0.0 || self.rotary_pct > 1.0 {
            return refuse(format!(
                "rotary_pct {} is not over 0 and up to 1",
                self.rotary_pct
            ));
        }
        let rotated = self.rotary_dim();
        if rotated == 0 || !rotated.is_multiple_of(2) {
            return refuse(format!(
                "rotary_pct {} turns {rotated} dimensions of a head",
                self.rotary_pct
            ));
        }
        if !self.rotary_emb_base.is_finite() || self.rotary_emb_base <= 0.0 {
            return refuse(format!(
                "rotary_emb_base {} is not a positive number",
                self.rotary_emb_base
            ));
        }
        if !self.layer_norm_eps.is_finite() || self.layer_norm_eps <= 0.0 {
            return refuse(format!(
                "layer_norm_eps {} is not a positive number",
                self.layer_norm_eps
            ));
        }
        for (name, share) in self.dropouts() {
            if !(0.0..1.0).contains(&share) {
                return refuse(format!("{name} {share} is not from 0 to below 1"));
            }
        }
        Ok(())
    }

    /// The base's own dropouts by their names, for training.
    #[must_use]
    pub fn dropouts(&self) -> [(&'static str, f64); 2] {
        [
            ("attention_dropout", self.attention_dropout),
            ("hidden_dropout", self.hidden_dropout),
        ]
    }

    /// Dimensions of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Leading dimensions of a head that have rotary embeddings.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        // Truncated, as transformers does.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let dim = (self.head_dim() as f64 * self.rotary_pct) as usize;
        dim
    }

    /// Writes a `config.json` with sorted keys and the old names, which every version of
    /// transformers reads.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let eos = match &self.eos_token_ids[..] {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut value = json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "attention_bias": self.attention_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "gpt_neox",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "rotary_emb_base": self.rotary_emb_base,
            "rotary_pct": self.rotary_pct,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_parallel_residual": self.use_parallel_residual,
            "vocab_size": self.vocab_size,
        });
        for (name, share) in self.dropouts() {
            if share != 0.0 {
                value[name] = json!(share);
            }
        }
        let mut text = format!("{value:#}");
        text.push('\n');
        text.into_bytes()
    }

    /// The names and shapes of the base's tensors, in the order in which a network takes them.
    pub(crate) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (vocab, hidden, inner) = (self.vocab_size, self.hidden_size, self.intermediate_size);
        let mut shapes = vec![("gpt_neox.embed_in.weight".to_owned(), vec![vocab, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut pair = |name: &str, weight: Vec<usize>, has_bias: bool| {
                let module = format!("gpt_neox.layers.{layer}.{name}");
                if has_bias {
                    shapes.push((format!("{module}.bias"), vec![weight[0]]));
                }
                shapes.push((format!("{module}.weight"), weight));
            };
            let bias = self.attention_bias;
            pair("input_layernorm", vec![hidden], true);
            pair("post_attention_layernorm", vec![hidden], true);
            pair("attention.query_key_value", vec![3 * hidden, hidden], bias);
            pair("attention.dense", vec![hidden, hidden], bias);
            pair("mlp.dense_h_to_4h", vec![inner, hidden], true);
            pair("mlp.dense_4h_to_h", vec![hidden, inner], true);
        }
        shapes.push(("gpt_neox.final_layer_norm.bias".to_owned(), vec![hidden]));
        shapes.push(("gpt_neox.final_layer_norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            shapes.push((HEAD.to_owned(), vec![vocab, hidden]));
        }
        shapes
    }

    /// Values in all the base's tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let shapes = self.shapes().into_iter();
        shapes
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum()
    }
}
