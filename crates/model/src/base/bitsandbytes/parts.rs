//! The tensors that a quantized weight consists of: their names, and the description of a 4-bit
//! weight.

use serde::{Deserialize, Serialize};

/// The description of a 4-bit weight: JSON in the bytes of a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) quant_type: String,
    pub(super) blocksize: usize,
    pub(super) dtype: String,
    pub(super) shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nested_offset: Option<f64>,
}

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
