//! The linear layers that can have an adapter, and the names of their tensors.

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};

/// A linear layer that can have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The joint query, key and value product of attention.
    QueryKeyValue,
    /// Attention's output product.
    Dense,
    /// The MLP's first product.
    #[serde(rename = "dense_h_to_4h")]
    DenseHTo4h,
    /// The MLP's second product.
    #[serde(rename = "dense_4h_to_h")]
    Dense4hToH,
}

impl Target {
    /// All targets, in the order of a layer's forward.
    pub const ALL: [Self; 4] = [
        Self::QueryKeyValue,
        Self::Dense,
        Self::DenseHTo4h,
        Self::Dense4hToH,
    ];

    /// The module's name in a checkpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueryKeyValue => "query_key_value",
            Self::Dense => "dense",
            Self::DenseHTo4h => "dense_h_to_4h",
            Self::Dense4hToH => "dense_4h_to_h",
        }
    }

    /// The target with this name.
    ///
    /// # Errors
    /// No target has the name.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|target| target.name() == name);
        found.ok_or_else(|| {
            Error::field(
                "target_modules",
                format!("{name:?} is no linear layer of gpt-neox"),
            )
        })
    }

    /// The module's path inside a layer, such as `attention.dense`.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::QueryKeyValue => "attention.query_key_value",
            Self::Dense => "attention.dense",
            Self::DenseHTo4h => "mlp.dense_h_to_4h",
            Self::Dense4hToH => "mlp.dense_4h_to_h",
        }
    }

    /// The layer's (input, output) widths.
    #[must_use]
    pub fn widths(self, config: &Config) -> (usize, usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::QueryKeyValue => (hidden, 3 * hidden),
            Self::Dense => (hidden, hidden),
            Self::DenseHTo4h => (hidden, inner),
            Self::Dense4hToH => (inner, hidden),
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// A linear layer's full name in a checkpoint.
pub(crate) fn module_name(layer: usize, target: Target) -> String {
    format!("gpt_neox.layers.{layer}.{}", target.path())
}

/// The name of a linear layer's weight in a checkpoint.
pub(crate) fn weight_name(layer: usize, target: Target) -> String {
    format!("{}.weight", module_name(layer, target))
}

/// PEFT's name of a factor (`'A'` or `'B'`).
pub(crate) fn factor_name(layer: usize, target: Target, factor: char) -> String {
    let module = module_name(layer, target);
    format!("base_model.model.{module}.lora_{factor}.weight")
}
