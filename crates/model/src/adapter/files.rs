//! The files of an adapter folder by name, and the refusal of a configuration.

use crate::error::{Error, Result};

/// The configuration's file name in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name in an adapter folder.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// The error of an `adapter_config.json` that is not understood.
pub(super) fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::format(CONFIG_FILE, reason))
}
