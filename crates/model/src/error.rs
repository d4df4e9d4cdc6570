//! The crate's errors: one type, whose text names the field, tensor or file.

use std::path::PathBuf;

/// Names of tensors in an error's text; a file of another model has thousands.
const LISTED: usize = 4;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the model, its files or its device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that a caller chose is out of its range.
    #[error("invalid {field}: {reason}")]
    Field {
        /// The field's name, as in the wire contract where it has one.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A model or adapter configuration is invalid or not supported.
    #[error("configuration: {0}")]
    Config(String),
    /// A text is not valid JSON, or not of the expected form.
    #[error("{what} is not valid json")]
    Json {
        /// The text's name.
        what: String,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// A file could not be read or written.
    #[error("file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A weight file or adapter file violates its format.
    #[error("{what}: {reason}")]
    Format {
        /// The file or its part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor of the configuration is missing.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// Tensors that are not part of the configuration.
    #[error("unknown tensors: {}", listed(.0))]
    Unexpected(Vec<String>),
    /// A tensor of the configuration is missing, and there are unknown ones, which may be it under
    /// another name.
    #[error("tensor {missing} is missing, and there are unknown tensors: {}", listed(.unknown))]
    Misnamed {
        /// The tensor.
        missing: String,
        /// The tensors that are not part of the configuration.
        unknown: Vec<String>,
    },
    /// A tensor occurs twice.
    #[error("tensor {0} occurs twice")]
    Duplicate(String),
    /// A tensor has another shape than in the configuration.
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The shape in the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor holds NaN or an infinity.
    #[error("tensor {0} has values that are not finite")]
    NotFinite(String),
    /// Token ids do not fit the model, or the sequence is too long.
    #[error("input: {0}")]
    Input(String),
    /// A base cannot be held in this precision.
    #[error("precision {precision}: {reason}")]
    Precision {
        /// The name of the precision that was asked for.
        precision: &'static str,
        /// Why not.
        reason: String,
    },
    /// A device is missing, cannot do the operation, or failed.
    #[error("device {device}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What is wrong, with the figures.
        reason: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation")]
    Tensor(#[from] candle_core::Error),
}

/// The first few names, and how many more there are.
fn listed(names: &[String]) -> String {
    let (first, rest) = names.split_at(names.len().min(LISTED));
    let first = first.join(", ");
    match rest.len() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

impl Error {
    /// [`Error::Missing`], or [`Error::Misnamed`] if there are unknown tensors.
    pub(crate) fn missing(missing: String, unknown: Vec<String>) -> Self {
        if unknown.is_empty() {
            Self::Missing(missing)
        } else {
            Self::Misnamed { missing, unknown }
        }
    }

    pub(crate) fn field(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Field {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn format(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Format {
            what: what.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn device(device: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Device {
            device: device.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }
}
