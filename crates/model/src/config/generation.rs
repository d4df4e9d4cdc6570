//! What a `generation_config.json` or an old `config.json` says of answers. The tokens that end one
//! are honoured. Rules that forbid or force tokens are refused, because no option of a request
//! would bring them. Sampling is a request's own choice.

use serde_json::Value;

use super::fields::Fields;
use crate::error::{Error, Result};

/// Fields that change which tokens may come or where an answer ends, with the values that mean
/// nothing beside `null`, `0`, `false` and an empty list.
const RULES: [(&str, Option<f64>); 17] = [
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("constraints", None),
    ("encoder_no_repeat_ngram_size", None),
    ("encoder_repetition_penalty", Some(1.0)),
    ("exponential_decay_length_penalty", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_decoder_ids", None),
    ("forced_eos_token_id", None),
    ("guidance_scale", Some(1.0)),
    ("max_time", None),
    ("sequence_bias", None),
    ("stop_strings", None),
    ("suppress_tokens", None),
    ("token_healing", None),
    ("watermarking_config", None),
];

/// Refuses rules that answers would not follow.
///
/// # Errors
/// [`Error::Config`] with the file and the field.
pub(super) fn check(file: &str, fields: &Fields<'_>) -> Result<()> {
    for (name, neutral) in RULES {
        let Some(value) = fields.get(name) else {
            continue;
        };
        let is_neutral = match value {
            Value::Bool(set) => !set,
            // Token 0 is a token like any other.
            Value::Number(_) if name.ends_with("_token_id") => false,
            Value::Number(number) => {
                let number = number.as_f64();
                number == Some(0.0) || (neutral.is_some() && number == neutral)
            }
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Null => true,
        };
        if !is_neutral {
            return Err(Error::Config(format!(
                "{file}: {name} {value} is not followed; take it out, and give requests what you \
                 need of it (stop, logit_bias, min_new_tokens)"
            )));
        }
    }
    Ok(())
}
