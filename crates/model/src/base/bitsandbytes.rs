//! Quantized weights as bitsandbytes stores them: entries of `config.json`, and several tensors for
//! each weight.

mod parts;
mod read;
mod write;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::quant::int8;
pub(super) use read::Parts;
pub(super) use write::outgoing;

/// The precision that a folder is quantized to, by its `config.json`.
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
            // Older files lack it.
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

/// The `quantization_config` of a folder in this precision, with the fields that transformers
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

/// The name of the weight that a tensor is a part of.
pub(super) fn owner(name: &str) -> Option<String> {
    for suffix in [".SCB", ".weight_format"] {
        if let Some(module) = name.strip_suffix(suffix) {
            return Some(format!("{module}.weight"));
        }
    }
    let (module, rest) = name.split_once(".weight")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| format!("{module}.weight"))
}
