//! The settings beside merged weights: the base's own, in f32 and without its quantization, and
//! what Togi answers with where the base does not say how tokens are chosen.

use serde_json::{Map, Value, json};

use crate::base::Base;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::sampling::Options;

/// Fields by which a base says how tokens are chosen.
const CHOICES: [&str; 12] = [
    "do_sample",
    "max_length",
    "max_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// The special tokens by which answers end and are padded.
#[derive(Clone, Debug)]
pub struct Special {
    /// Each of them ends an answer.
    pub eos: Vec<u32>,
    /// Padding, if there is any.
    pub pad: Option<u32>,
}

impl Special {
    /// Those of a configuration, for a base without a tokenizer.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            eos: config.eos_token_ids.clone(),
            pad: config.pad_token_id,
        }
    }
}

/// Returns the `config.json`.
///
/// # Errors
/// The base's own is not a JSON object.
pub(super) fn config(base: &Base, special: &Special) -> Result<Vec<u8>> {
    let mut fields = base.config().as_all_versions_read_it(base.config_json())?;
    fields.remove("quantization_config");
    for (name, value) in [
        ("architectures", json!(["GPTNeoXForCausalLM"])),
        ("dtype", json!("float32")),
        ("eos_token_id", eos(special)),
        ("model_type", json!("gpt_neox")),
        ("pad_token_id", json!(special.pad)),
        ("torch_dtype", json!("float32")),
    ] {
        fields.insert(name.to_owned(), value);
    }
    Ok(text(fields))
}

/// Returns the `generation_config.json`.
///
/// # Errors
/// The base's own is not a JSON object.
pub(super) fn generation(base: &Base, special: &Special) -> Result<Vec<u8>> {
    let own = base.generation_json().map(serde_json::from_slice);
    let own = own.transpose().map_err(|source| Error::Json {
        what: "generation_config.json".into(),
        source,
    })?;
    let mut fields: Map<String, Value> = own.unwrap_or_default();
    for (name, value) in [
        ("bos_token_id", json!(base.config().bos_token_id)),
        ("eos_token_id", eos(special)),
        ("pad_token_id", json!(special.pad)),
    ] {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    }
    if !CHOICES.iter().any(|name| fields.contains_key(*name)) {
        let options = Options::default();
        // Through its decimal digits: 0.7 in 32 bits has a tail in 64.
        let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
        for (name, value) in [
            ("do_sample", json!(true)),
            ("max_new_tokens", json!(options.max_new_tokens)),
            ("no_repeat_ngram_size", json!(options.no_repeat_ngram_size)),
            (
                "repetition_penalty",
                json!(number(options.repetition_penalty)),
            ),
            ("temperature", json!(number(options.temperature))),
            ("top_k", json!(options.top_k)),
            ("top_p", json!(number(options.top_p))),
        ] {
            fields.insert(name.to_owned(), value);
        }
    }
    Ok(text(fields))
}

fn eos(special: &Special) -> Value {
    match special.eos[..] {
        [] => Value::Null,
        [id] => json!(id),
        ref ids => json!(ids),
    }
}

fn text(fields: Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::Object(fields)).into_bytes()
}
