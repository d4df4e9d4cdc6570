//! The crate's error. Its class decides the gRPC code and what becomes of a job.

use std::io;

use togi_runtime::Class;
use togi_tokens::form::Form;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a preparation, an upload or a read failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source's bytes do not have the form of its format.
    #[error("{what}")]
    Malformed {
        /// The fault and its position.
        what: String,
    },
    /// The source is larger than the configuration allows.
    #[error("the source has more than {limit} bytes once unpacked")]
    SourceTooLarge {
        /// The configuration's limit.
        limit: u64,
    },
    /// A table lacks a column that every record needs.
    #[error(
        "the table has no column {column:?}; its columns are {there} (--column {ours}=NAME reads \
         another column). {}",
        forms()
    )]
    NoColumn {
        /// The column, by the file's name.
        column: String,
        /// Our name for it.
        ours: &'static str,
        /// The columns that are there.
        there: String,
    },
    /// A record that cannot be left out, because its whole file would be understood wrongly.
    #[error("{place}: {reason}")]
    Refused {
        /// The file and the line or position of the record.
        place: String,
        /// Why the file is refused.
        reason: String,
    },
    /// A table's column holds neither text nor numbers.
    #[error("column {column:?} is of type {kind}; text or a number is needed")]
    ColumnType {
        /// The column, by the file's name.
        column: String,
        /// The Arrow name of its type.
        kind: String,
    },
    /// A bad record, if the request lets it fail the job.
    #[error("record {number} was rejected: {reason}")]
    BadRecord {
        /// Its line or position in the source, from 1.
        number: u64,
        /// Why it was rejected.
        reason: String,
    },
    /// There is nothing to prepare.
    #[error("the source has no records")]
    Empty,
    /// Nothing is left to prepare.
    #[error("all {read} records were rejected; record {number} because: {reason}{hint}")]
    AllRejected {
        /// Records read.
        read: u64,
        /// The line or position of the first one.
        number: u64,
        /// Why the first one was rejected.
        reason: String,
        /// What to do about the file, as a further sentence; may be empty.
        hint: String,
    },
    /// The validation share took every row.
    #[error("the validation share of {share} left no row to train on")]
    NothingToTrainOn {
        /// The request's share.
        share: f64,
    },
    /// A shard's bytes do not have the digest in its manifest.
    #[error("object {path} is not the one that its manifest names")]
    Damaged {
        /// The object's key.
        path: String,
    },
    /// A shard has its manifest's digest, and is no shard that this version reads.
    #[error("object {path} cannot be read: {reason}; prepare the data set again")]
    Unreadable {
        /// The object's key.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The local scratch folder failed.
    #[error("the scratch folder could not be used")]
    Scratch(#[source] io::Error),
    /// Text, rows or shards were refused.
    #[error(transparent)]
    Tokens(#[from] togi_tokens::Error),
    /// A request or an object was refused, or a part of the runtime failed.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
    /// A thread ended by a panic.
    #[error("a {thread} thread panicked")]
    Panicked {
        /// The thread's task.
        thread: &'static str,
    },
    /// The work was stopped from outside.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    /// An `InvalidArgument` about a request's field.
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        togi_runtime::Error::invalid(field, message).into()
    }

    /// A `NotFound` of the thing that a request's field names.
    pub(crate) fn not_found(field: &str, message: impl Into<String>) -> Self {
        togi_runtime::Error::not_found(message)
            .with_field(field)
            .into()
    }

    /// A `FailedPrecondition` of the thing that a request's field names.
    pub(crate) fn precondition(field: &str, message: impl Into<String>) -> Self {
        togi_runtime::Error::precondition(message)
            .with_field(field)
            .into()
    }

    /// Replaces the store's `NotFound` by one about a request's field; keeps any other error.
    pub(crate) fn missing(error: togi_runtime::Error, field: &str, message: &str) -> Self {
        if error.class() != Class::NotFound {
            return error.into();
        }
        let missing = togi_runtime::Error::not_found(message).with_field(field);
        missing.with_source(error).into()
    }

    /// Returns the error's class.
    pub fn class(&self) -> Class {
        match self {
            Self::Malformed { .. }
            | Self::SourceTooLarge { .. }
            | Self::NoColumn { .. }
            | Self::ColumnType { .. }
            | Self::BadRecord { .. }
            | Self::Refused { .. }
            | Self::Empty
            | Self::AllRejected { .. }
            | Self::NothingToTrainOn { .. } => Class::InvalidArgument,
            Self::Damaged { .. } | Self::Unreadable { .. } => Class::DataLoss,
            Self::Scratch(_) => Class::Unavailable,
            Self::Runtime(error) => error.class(),
            Self::Tokens(_) | Self::Panicked { .. } => Class::Internal,
            Self::Stopped => Class::Aborted,
        }
    }

    /// Returns the request's field at fault.
    fn field(&self) -> Option<&'static str> {
        match self {
            Self::Malformed { .. }
            | Self::SourceTooLarge { .. }
            | Self::BadRecord { .. }
            | Self::Refused { .. }
            | Self::Empty
            | Self::AllRejected { .. } => Some("records"),
            Self::NoColumn { .. } | Self::ColumnType { .. } => Some("records.columns"),
            Self::NothingToTrainOn { .. } => Some("settings.validation_share"),
            _ => None,
        }
    }
}

/// A sentence with the forms of records that are read.
pub(crate) fn forms() -> String {
    format!("Forms that are read: {}", Form::list())
}

/// An error of a reader: our own error that it passed on, a failing disk, or broken bytes from an
/// unpacker.
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
        let field = match error {
            Error::Runtime(error) => return error,
            ref error => error.field(),
        };
        let converted = Self::new(error.class(), error.to_string()).with_source(error);
        match field {
            Some(field) => converted.with_field(field),
            None => converted,
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        togi_runtime::Error::from(error).into()
    }
}
