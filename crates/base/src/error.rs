//! Why a base or an adapter cannot be used. The caller gives an adapter's error its class.

use togi_common::Generation;
use togi_runtime::Class;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A base or an adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base's folder has no tokenizer.
    #[error("its folder has no spiece.model and no tokenizer.model")]
    NoTokenizer,
    /// The tokenizer's file is damaged or of an unsupported kind.
    #[error("its tokenizer is not usable: {0}")]
    Tokenizer(togi_tokens::Error),
    /// The tokenizer makes ids that the network does not have.
    #[error("its tokenizer has {pieces} pieces, its network {ids} ids")]
    Vocabulary {
        /// Pieces of the tokenizer.
        pieces: usize,
        /// Ids of the network.
        ids: usize,
    },
    /// No adapter of this generation was published.
    #[error("generation {0} is not published")]
    NotPublished(Generation),
    /// The manifest cannot be read, or names the wrong files.
    #[error("{0}")]
    Manifest(String),
    /// A file is missing or differs from its manifest.
    #[error("{0}")]
    Damaged(String),
    /// The thread that read a base ended.
    #[error("reading a base: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// The base's or the adapter's contents.
    #[error(transparent)]
    Model(#[from] togi_model::Error),
    /// The source of the base or the store.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
}

impl Error {
    /// Returns the error of the base that is configured as `name`: the source's own, or a failed
    /// precondition of the field `base`.
    #[must_use]
    pub fn of_base(self, name: &str) -> togi_runtime::Error {
        let error = match self {
            Self::Runtime(error) => error,
            Self::Thread(_) => togi_runtime::Error::internal(self.to_string()),
            unusable => {
                let message = format!("base {name:?} is not usable: {unusable}");
                togi_runtime::Error::new(Class::FailedPrecondition, message)
            }
        };
        error.with_field("base")
    }

    /// Whether the base's source may answer another time.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Runtime(error) if error.class().retryable())
    }
}
