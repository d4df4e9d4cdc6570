//! Why a base or an adapter cannot be used. The caller gives the error its class.

use togi_common::Generation;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A base or an adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base's folder has no tokenizer.
    #[error("its folder has no spiece.model and no tokenizer.model")]
    NoTokenizer,
    /// The tokenizer's file is damaged or of an unsupported kind.
    #[error("its tokenizer is invalid: {0}")]
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
    /// The base's or the adapter's contents.
    #[error(transparent)]
    Model(#[from] togi_model::Error),
    /// The source of the base or the store.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
}
