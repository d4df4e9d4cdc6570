//! The form in which bitsandbytes keeps quantized weights: entries of `config.json`, and several
//! tensors for each weight.

mod read;
mod write;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::quant::int8;
pub(super) use read::Parts;
pub(super) use write::outgoing;

/// What a folder's weights are quantized as, by its `config.json`.
pub(super) fn precision(config_json: &[u8]) -> Result<Option<Precision>> {
    let config: Value = serde_json::from_slice(config_json).map_err(|source| Error::Json {
        what: "config.json".into(),
        source,
    })?;
    let settings = &config["quantization_config"];
    if settings.is_null() {
        return Ok(None);
    }
    let expect = |field: &str, expected: Value| {
        let found = &settings[field];
        if *found == expected {
            return Ok(());
        }
        let reason = format!("quantization_config.{field} {found} is not supported; {expected} is");
        Err(Error::Config(reason))
    };
    expect("quant_method", "bitsandbytes".into())?;
    let set = |field: &str| settings[field] == Value::Bool(true);
    match (set("load_in_4bit"), set("load_in_8bit")) {
        (true, false) => {
            expect("bnb_4bit_quant_type", "nf4".into())?;
            // Older files do not name it.
            if !settings["bnb_4bit_quant_storage"].is_null() {
                expect("bnb_4bit_quant_storage", "uint8".into())?;
            }
            Ok(Some(Precision::Nf4))
        }
        (false, true) => {
            expect("llm_int8_threshold", int8::THRESHOLD.into())?;
            expect("llm_int8_has_fp16_weight", false.into())?;
            Ok(Some(Precision::Int8))
        }
        _ => Err(Error::Config(
            "quantization_config sets not just one of load_in_4bit and load_in_8bit".into(),
        )),
    }
}

/// The `quantization_config` of a folder that is quantized so, with the fields that transformers
/// writes.
pub(super) fn settings(precision: Precision) -> Value {
    let is_4bit = precision == Precision::Nf4;
    json!({
        "_load_in_4bit": is_4bit,
        "_load_in_8bit": !is_4bit,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if is_4bit { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": is_4bit,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": int8::THRESHOLD,
        "load_in_4bit": is_4bit,
        "load_in_8bit": !is_4bit,
        "quant_method": "bitsandbytes",
    })
}

/// The weight that a tensor is, or is a part of.
pub(super) fn owner(name: &str) -> Option<String> {
    for suffix in [".SCB", ".weight_format"] {
        if let Some(module) = name.strip_suffix(suffix) {
            return Some(format!("{module}.weight"));
        }
    }
    let (module, rest) = name.split_once(".weight")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| format!("{module}.weight"))
}

/// What a 4-bit weight says of itself, as JSON in the bytes of a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

/// Names of what a weight is made of, by the weight's name.
mod part {
    pub(super) fn state(weight: &str) -> String {
        format!("{weight}.quant_state.bitsandbytes__nf4")
    }

    pub(super) fn absmax(weight: &str) -> String {
        format!("{weight}.absmax")
    }

    pub(super) fn map(weight: &str) -> String {
        format!("{weight}.quant_map")
    }

    pub(super) fn nested_absmax(weight: &str) -> String {
        format!("{weight}.nested_absmax")
    }

    pub(super) fn nested_map(weight: &str) -> String {
        format!("{weight}.nested_quant_map")
    }

    pub(super) fn row_absmax(weight: &str) -> String {
        beside(weight, "SCB")
    }

    pub(super) fn layout(weight: &str) -> String {
        beside(weight, "weight_format")
    }

    fn beside(weight: &str, name: &str) -> String {
        let module = weight.strip_suffix("weight").unwrap_or(weight);
        format!("{module}{name}")
    }
}
