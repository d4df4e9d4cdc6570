//! Errors of tokenizers, settings, shards and manifests. A bad record is data, not an error: see
//! `record::Reject`.

/// Why a tokenizer, a setting, a shard or a manifest was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a SentencePiece unigram model, or need a feature that is not implemented.
    #[error("not a usable sentencepiece unigram model: {reason}")]
    Tokenizer {
        /// What is wrong with it.
        reason: String,
    },
    /// The model has something that `tokenizer.json` of the tokenizers library cannot express.
    #[error("the model cannot be written as tokenizer.json: {reason}")]
    Inexpressible {
        /// What it has.
        reason: String,
    },
    /// A file beside a SentencePiece model would make other ids, or another end, than the model.
    #[error("{file}: {reason}")]
    Beside {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting's value is out of its range.
    #[error("invalid {field}: {reason}")]
    Setting {
        /// The setting's name.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The bytes are not a shard, or the shard exceeds the caps.
    #[error("not a readable shard: {reason}")]
    Shard {
        /// What is wrong with them.
        reason: String,
    },
    /// The bytes are not a data set's manifest.
    #[error("not a data set manifest: {reason}")]
    Manifest {
        /// What is wrong with them.
        reason: String,
    },
    /// Parquet could not be written or read.
    #[error("parquet failed")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Columns could not be combined.
    #[error("arrow failed")]
    Arrow(#[from] arrow_schema::ArrowError),
}

/// This crate's result. Some functions have a rejected record as their error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn tokenizer(reason: impl Into<String>) -> Self {
        Self::Tokenizer {
            reason: reason.into(),
        }
    }

    pub(crate) fn inexpressible(reason: impl Into<String>) -> Self {
        Self::Inexpressible {
            reason: reason.into(),
        }
    }

    pub(crate) fn beside(file: &str, reason: impl Into<String>) -> Self {
        Self::Beside {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn setting(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Setting {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn shard(reason: impl Into<String>) -> Self {
        Self::Shard {
            reason: reason.into(),
        }
    }

    pub(crate) fn manifest(reason: impl Into<String>) -> Self {
        Self::Manifest {
            reason: reason.into(),
        }
    }
}
