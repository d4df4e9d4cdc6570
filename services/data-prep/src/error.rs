//! What can go wrong between a source and a data set, and the class of each.

use std::io;

use thiserror::Error;
use togi_runtime::Class;

/// Why a preparation, an upload or a read failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The source's bytes are not what its format says.
    #[error("{what}")]
    Malformed {
        /// What is wrong and where.
        what: String,
    },
    /// The source is larger than the configuration allows.
    #[error("the source has more than {limit} bytes once unpacked")]
    SourceTooLarge {
        /// The configuration's limit.
        limit: u64,
    },
    /// A table lacks a column that every record needs.
    #[error("the table has no column {column:?}")]
    NoColumn {
        /// The column, by the file's own name.
        column: String,
    },
    /// A table's column holds neither text nor numbers.
    #[error("column {column:?} is of type {kind}; text or a number is needed")]
    ColumnType {
        /// The column, by the file's own name.
        column: String,
        /// Its type in Arrow's words.
        kind: String,
    },
    /// A bad record, where the request says that one fails the job.
    #[error("record {number} was rejected: {reason}")]
    BadRecord {
        /// Its line or place in the source, from 1.
        number: u64,
        /// Why.
        reason: String,
    },
    /// There is nothing to prepare.
    #[error("the source has no records")]
    Empty,
    /// Nothing is left to prepare.
    #[error("all {read} records were rejected; record {number} because: {reason}")]
    AllRejected {
        /// Records read.
        read: u64,
        /// The first one's line or place.
        number: u64,
        /// Why the first one was rejected.
        reason: String,
    },
    /// The validation share took every row.
    #[error("the validation share of {share} left no row to train on")]
    NothingToTrainOn {
        /// The request's share.
        share: f64,
    },
    /// A shard's bytes are not those that its manifest names.
    #[error("object {path} is not the one that its manifest names")]
    Damaged {
        /// The object's key.
        path: String,
    },
    /// The local scratch folder failed.
    #[error("the scratch folder could not be used")]
    Scratch(#[source] io::Error),
    /// Text, rows or shards were refused.
    #[error(transparent)]
    Tokens(#[from] togi_tokens::Error),
    /// A part of the runtime failed.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
    /// A thread ended by a panic.
    #[error("a {thread} thread panicked")]
    Panicked {
        /// Which.
        thread: &'static str,
    },
    /// Somebody asked for the end.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    /// The request's field that is at fault; empty where none is.
    fn field(&self) -> &'static str {
        match self {
            Self::Malformed { .. }
            | Self::SourceTooLarge { .. }
            | Self::BadRecord { .. }
            | Self::Empty
            | Self::AllRejected { .. } => "records",
            Self::NoColumn { .. } | Self::ColumnType { .. } => "records.columns",
            Self::NothingToTrainOn { .. } => "settings.validation_share",
            _ => "",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Malformed { .. }
            | Self::SourceTooLarge { .. }
            | Self::NoColumn { .. }
            | Self::ColumnType { .. }
            | Self::BadRecord { .. }
            | Self::Empty
            | Self::AllRejected { .. }
            | Self::NothingToTrainOn { .. } => Class::InvalidArgument,
            Self::Damaged { .. } => Class::DataLoss,
            Self::Scratch(_) => Class::Unavailable,
            Self::Runtime(error) => error.class(),
            Self::Tokens(_) | Self::Panicked { .. } => Class::Internal,
            Self::Stopped => Class::Aborted,
        }
    }
}

/// What a reader says: our own error carried through it, a failing disk, or, from an unpacker,
/// bytes that are broken.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::Scratch(error);
        }
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(other) => Self::malformed(format!("the source's bytes are broken: {other}")),
        }
    }
}

impl From<Error> for togi_runtime::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Runtime(error) => error,
            error => {
                let told = Self::new(error.class(), error.to_string());
                let told = match error.field() {
                    "" => told,
                    field => told.with_field(field),
                };
                told.with_source(error)
            }
        }
    }
}
