//! The failures of this crate, each with its class. The class alone decides the gRPC code.

use std::borrow::Cow;
use std::time::Duration;

use togi_common::Generation;
use togi_runtime::error::Class;

/// A failure of the inference service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// The field's path, for example `options.temperature`.
        field: Cow<'static, str>,
        /// What is wrong, with figures.
        reason: String,
    },
    /// No such alias or generation.
    #[error("no alias and no generation is named {name:?}{near}")]
    UnknownAdapter {
        /// The name.
        name: String,
        /// The end of the sentence, with a name that is near.
        near: String,
    },
    /// The alias is declared, but its adapter cannot be served.
    #[error("adapter {generation} of {name:?} was refused: {reason}")]
    Refused {
        /// What the request named.
        name: String,
        /// The generation.
        generation: Generation,
        /// Why it was refused.
        reason: String,
    },
    /// The alias is declared, and its adapter is not loaded yet.
    #[error("adapter {name:?} is still loading{}", waits(.reason.as_deref()))]
    StillLoading {
        /// The alias.
        name: String,
        /// Why its last load has failed; `None` if none has.
        reason: Option<String>,
    },
    /// Every permit is taken, or the prompts that wait have too many tokens.
    #[error(
        "{active} answers are being written and {waiting} requests with {waiting_tokens} prompt \
         tokens wait: no place is left; come back in {} s",
        .retry_after.as_secs_f64().ceil()
    )]
    Full {
        /// Answers in progress.
        active: usize,
        /// Requests that wait.
        waiting: usize,
        /// The tokens of their prompts.
        waiting_tokens: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// A request's time was over before its answer began.
    #[error("the request's time was over after {:.1} s, before its answer began", .0.as_secs_f64())]
    NotBegun(Duration),
    /// An adapter that this replica refuses.
    #[error("{0}")]
    BadAdapter(String),
    /// The files of an adapter are missing or differ from its manifest.
    #[error("{0}")]
    BrokenAdapter(String),
    /// The adapters that requests use leave no room on the device for another one.
    #[error(
        "the adapter takes {needed} bytes on the device, where requests use {in_use} adapters of \
         {bytes} bytes and {limit} are for all: no room is left; come back in {} s",
        .retry_after.as_secs_f64().ceil()
    )]
    PoolFull {
        /// The bytes of the adapter.
        needed: u64,
        /// The adapters in use.
        in_use: usize,
        /// Their bytes.
        bytes: u64,
        /// The most bytes of all adapters.
        limit: u64,
        /// When to come back.
        retry_after: Duration,
    },
    /// The device did not take an adapter.
    #[error("the adapter cannot be brought onto the device")]
    NotOnDevice(#[source] togi_model::Error),
    /// A load took too long.
    #[error("the adapter was not loaded within {} s", .0.as_secs())]
    LoadTimeout(Duration),
    /// The replica stops.
    #[error("this replica is stopping")]
    Stopping,
    /// The base is not loaded yet.
    #[error("the base is still loading")]
    BaseLoading,
    /// The device is missing or unsuitable.
    #[error(transparent)]
    Device(togi_model::Error),
    /// The network failed in the middle of an answer.
    #[error("the network failed")]
    Network(#[source] togi_model::Error),
    /// A setting is wrong.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting's path.
        setting: String,
        /// What is wrong.
        reason: String,
    },
    /// A thread or task ended unexpectedly.
    #[error("{0}")]
    Broken(String),
    /// Something below failed.
    #[error(transparent)]
    Runtime(#[from] togi_runtime::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A wrong field, named by its path in the request.
    pub(crate) fn field(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// No adapter has this name, and none is near.
    pub(crate) fn unknown_adapter(name: String) -> Self {
        let near = String::new();
        Self::UnknownAdapter { name, near }
    }

    /// Returns the class. It decides the gRPC code, and whether the load of an adapter is repeated.
    pub fn class(&self) -> Class {
        match self {
            Error::Field { .. } | Error::Setting { .. } => Class::InvalidArgument,
            Error::UnknownAdapter { .. } => Class::NotFound,
            Error::Refused { .. } | Error::BadAdapter(_) | Error::Device(_) => {
                Class::FailedPrecondition
            }
            Error::BrokenAdapter(_) => Class::DataLoss,
            Error::Full { .. } | Error::PoolFull { .. } => Class::ResourceExhausted,
            Error::StillLoading { .. }
            | Error::Stopping
            | Error::BaseLoading
            | Error::NotOnDevice(_) => Class::Unavailable,
            Error::LoadTimeout(_) | Error::NotBegun(_) => Class::DeadlineExceeded,
            Error::Network(_) | Error::Broken(_) => Class::Internal,
            Error::Runtime(error) => error.class(),
        }
    }
}

/// Errors of reading an adapter.
impl From<togi_base::Error> for Error {
    fn from(error: togi_base::Error) -> Self {
        match error {
            togi_base::Error::NotPublished(generation) => {
                Error::unknown_adapter(generation.to_string())
            }
            togi_base::Error::Damaged(reason) => Error::BrokenAdapter(reason),
            togi_base::Error::Runtime(error) => Error::Runtime(error),
            unfit => Error::BadAdapter(with_cause(&unfit)),
        }
    }
}

fn waits(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| {
        format!("; it is tried again, because {reason}")
    })
}

/// Returns an error and its causes in one line.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<Error> for togi_runtime::Error {
    fn from(error: Error) -> togi_runtime::Error {
        match error {
            Error::Runtime(error) => error,
            Error::Field { field, reason } => togi_runtime::Error::invalid(field, reason),
            Error::Setting {
                ref setting,
                ref reason,
            } => togi_runtime::Error::invalid(setting, format!("{setting}: {reason}")),
            Error::Full { retry_after, .. } | Error::PoolFull { retry_after, .. } => {
                togi_runtime::Error::new(error.class(), error.to_string())
                    .with_retry_after(retry_after)
            }
            other => togi_runtime::Error::new(other.class(), other.to_string()).with_source(other),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        togi_runtime::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_is_still_loading_says_what_it_waits_for() {
        let loading = |reason: Option<&str>| {
            let (name, reason) = ("a".to_owned(), reason.map(str::to_owned));
            Error::StillLoading { name, reason }.to_string()
        };
        assert_eq!(loading(None), "adapter \"a\" is still loading");
        let says = "adapter \"a\" is still loading; it is tried again, because the store hangs";
        assert_eq!(loading(Some("the store hangs")), says);
    }
}
