//! The trainer's errors and their classes. The class alone decides the gRPC code and what becomes
//! of the job.

use togi_runtime::Class;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the trainer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of a request is invalid by itself.
    #[error("{field} {reason}")]
    Invalid {
        /// The field's path in the request, for example `recipe.lora.rank`.
        field: &'static str,
        /// What is wrong with the field.
        reason: String,
    },
    /// The parts that a request names are incompatible.
    #[error("{field} {reason}")]
    Unfit {
        /// The field at fault.
        field: &'static str,
        /// The incompatibility, with both sides' figures.
        reason: String,
    },
    /// The job needs more memory than is available.
    #[error(
        "the job needs {needed} bytes of {device}'s memory ({plan}) and {available} are available; {}",
        what_fits(*largest)
    )]
    Memory {
        /// The device.
        device: String,
        /// Bytes that the plan needs.
        needed: u64,
        /// Bytes available on the device.
        available: u64,
        /// The parts of the plan.
        plan: String,
        /// The largest micro-batch that fits, if any.
        largest: Option<u32>,
    },
    /// The loss or the gradient norm is not finite.
    #[error(
        "{what} of step {step} is not finite (epoch {epoch}, samples {}); {}",
        samples.join(", "),
        last_good(checkpoint.as_deref())
    )]
    NotFinite {
        /// "the loss" or "the gradient norm".
        what: &'static str,
        /// The optimizer step.
        step: u64,
        /// Its epoch, from 0.
        epoch: u64,
        /// Ids of the window's records.
        samples: Vec<String>,
        /// Manifest of the last checkpoint before the step.
        checkpoint: Option<String>,
    },
    /// Stored bytes contradict their manifest or their schema.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// The object that was read.
        what: String,
        /// What is wrong with the object.
        reason: String,
    },
    /// A checkpoint belongs to another run: other data, base or recipe.
    #[error(
        "the checkpoint {checkpoint} was made with another {what}; the job cannot go on exactly"
    )]
    OtherRun {
        /// The checkpoint's manifest.
        checkpoint: String,
        /// The part of the identity that differs.
        what: &'static str,
    },
    /// Data-prep answered with an error that no retry cures, or with invalid rows.
    #[error("data set {dataset} cannot be read from data-prep: {reason}")]
    Data {
        /// The data set's digest.
        dataset: String,
        /// The reason.
        reason: String,
        /// The cause's class.
        class: Class,
    },
    /// A newer revision has made a policy's job unnecessary before it began.
    #[error("revision {revision} of the data set is trained instead")]
    Overtaken {
        /// The newer revision.
        revision: u64,
    },
    /// A thread of this process panicked; its message is in the log.
    #[error("a thread panicked")]
    Panicked,
    /// A training ended before its last step, and nobody had asked it to.
    #[error("the training ended before its last step")]
    StoppedEarly,
    /// A data set yields fewer rows than its manifest counts.
    #[error("the rows ended {missing} before their count")]
    RowsEnded {
        /// The rows that did not come.
        missing: u64,
    },
    /// The claim ended, so that the result is no longer needed.
    #[error("the claim on the job has ended")]
    ClaimEnded,
    /// An error of the network, the adapter or the base.
    #[error(transparent)]
    Model(#[from] togi_model::Error),
    /// An error of the tokenizer or the data set's manifest.
    #[error(transparent)]
    Tokens(#[from] togi_tokens::Error),
    /// An error of the store, the bus, a job's record or the configuration.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
    /// An I/O error of a file or a thread.
    #[error("i/o")]
    Io(#[from] std::io::Error),
    /// One of our values cannot be written as JSON.
    #[error("json")]
    Json(#[from] serde_json::Error),
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Invalid {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn unfit(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Unfit {
            field,
            reason: reason.into(),
        }
    }

    pub(crate) fn damaged(what: impl Into<String>, reason: impl ToString) -> Error {
        Error::Damaged {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    /// A base's or an adapter's file cannot be read. A difference from its manifest is damage.
    pub(crate) fn unreadable(what: &str, error: togi_base::Error) -> Error {
        match error {
            togi_base::Error::Model(error) => error.into(),
            togi_base::Error::Runtime(error) => error.into(),
            damage => Error::damaged(what, damage),
        }
    }

    /// Returns the error's class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Invalid { .. } => Class::InvalidArgument,
            Error::Unfit { .. } | Error::OtherRun { .. } | Error::NotFinite { .. } => {
                Class::FailedPrecondition
            }
            Error::Overtaken { .. } | Error::ClaimEnded => Class::Aborted,
            Error::Memory { .. } => Class::ResourceExhausted,
            Error::Damaged { .. } => Class::DataLoss,
            Error::Data { class, .. } => *class,
            Error::Model(togi_model::Error::Field { .. }) => Class::InvalidArgument,
            Error::Model(_) => Class::FailedPrecondition,
            Error::Tokens(_) => Class::DataLoss,
            Error::Runtime(error) => error.class(),
            Error::Panicked | Error::StoppedEarly | Error::RowsEnded { .. } | Error::Json(_) => {
                Class::Internal
            }
            Error::Io(_) => Class::Unavailable,
        }
    }

    fn field(&self) -> Option<&'static str> {
        match self {
            Error::Invalid { field, .. } | Error::Unfit { field, .. } => Some(field),
            _ => None,
        }
    }
}

impl From<Error> for togi_runtime::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Runtime(error) => error,
            error => {
                let class = error.class();
                let message = error.to_string();
                match error.field() {
                    Some(field) => togi_runtime::Error::new(class, message).with_field(field),
                    None => togi_runtime::Error::new(class, message).with_source(error),
                }
            }
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        togi_runtime::Error::from(error).into()
    }
}

fn what_fits(largest: Option<u32>) -> String {
    match largest {
        Some(largest) => format!("recipe.batch_size {largest} is the largest that fits"),
        None => "not even recipe.batch_size 1 fits: hold the base in fewer bits by recipe.base_precision, or take a smaller \
                 recipe.lora.rank or data set max_length"
            .to_owned(),
    }
}

fn last_good(checkpoint: Option<&str>) -> String {
    match checkpoint {
        Some(manifest) => format!("the last good checkpoint is {manifest}"),
        None => "there is no earlier checkpoint".to_owned(),
    }
}
