//! The activation of the MLP, by its names in `config.json`.

use crate::error::{Error, Result};

/// The activation between the two products of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Φ(x)`, exact (erf): `gelu`, `gelu_python`.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x σ(x)`: `silu`, `swish`.
    Silu,
}

impl Activation {
    /// The activation of a `hidden_act`, in any spelling of transformers.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "gelu" | "gelu_python" => Ok(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Ok(Self::GeluTanh)
            }
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            other => Err(Error::Config(format!(
                "hidden_act {other:?} is not supported"
            ))),
        }
    }

    /// The spelling that every version of transformers reads.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}
