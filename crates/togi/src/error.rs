//! The command's errors and their exit codes. The class of an error alone decides its code.

use std::io;
use std::path::{Path, PathBuf};

use togi_runtime::error::Class;
use tonic::Code;
use tonic_types::StatusExt;

/// The result of the library's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// The beginning of the message for an answer that did not come.
const BROKEN: &str = "the connection to the service broke";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line is wrong; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A configuration, recipe or policy file is wrong; exit code 64.
    #[error("{0}")]
    Configuration(String),
    /// A service refused or failed a request.
    #[error("{}", status_sentence(.code, .message, .field))]
    Service {
        /// The gRPC status code.
        code: Code,
        /// The service's message.
        message: String,
        /// The request's wrong field, or empty.
        field: String,
    },
    /// Nothing answers at an address; exit code 4.
    #[error(
        "nothing answers at {endpoint}; start it with `togi up`, or name another with --endpoint"
    )]
    NoAnswer {
        /// The address.
        endpoint: String,
        /// Why the connection failed.
        #[source]
        source: tonic::transport::Error,
    },
    /// The answer to a request did not come, so that it may have been accepted; exit code 4.
    #[error(
        "{reason}; whether the job is accepted is not known: the same command with \
         --idempotency-key {key} finds it, and never makes a second one"
    )]
    Unclear {
        /// The key of the request.
        key: String,
        /// Why the answer did not come.
        reason: String,
    },
    /// A job did not succeed.
    #[error("job {job} {state}{}", .reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Job {
        /// The job's id.
        job: String,
        /// How it ended, for example "failed".
        state: &'static str,
        /// The gRPC code's name of the failure or refusal, empty for a cancelled job.
        code: String,
        /// Why.
        reason: Option<String>,
    },
    /// A file cannot be read or written; exit code 1, 3 for a missing one, or 5 for what is no
    /// regular file.
    #[error("{}: {}", .path.display(), .source)]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that a name stands for does not exist; exit code 3.
    #[error("{0}")]
    Missing(String),
    /// A local file or folder cannot be used for its purpose; exit code 5.
    #[error("{what} {}: {source}", .path.display())]
    Unfit {
        /// The purpose, for example "base".
        what: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A resource of `togi up` is missing or in use; exit code 4.
    #[error("{0}")]
    Unavailable(String),
    /// The runtime of the services failed.
    #[error("{0}")]
    Runtime(#[from] togi_runtime::Error),
    /// The demonstration's scores are below their bars; exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Ctrl-C; exit code 130.
    #[error("interrupted{0}")]
    Interrupted(String),
    /// Standard output was closed by its reader; exit code 0, nothing is printed.
    #[error("standard output is closed")]
    Closed,
    /// Standard input or output failed.
    #[error("standard input or output: {0}")]
    Terminal(io::Error),
}

impl Error {
    /// Returns the process's exit code: 0 done, 1 failed, 2 usage, 3 not found, 4 unavailable, 5
    /// refused, 64 bad configuration, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Failed(_) | Self::Terminal(_) => 1,
            Self::Usage(_) => 2,
            Self::NoAnswer { .. } | Self::Unavailable(_) | Self::Unclear { .. } => 4,
            Self::Missing(_) => 3,
            Self::Unfit { .. } => 5,
            Self::Configuration(_) => 64,
            Self::Interrupted(_) => 130,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => 3,
                io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => 5,
                _ => 1,
            },
            Self::Service { code, .. } => Class::from_code(*code).exit_code(),
            Self::Job { code, .. } => job_code(code),
            Self::Runtime(error) => error.class().exit_code(),
        }
    }

    /// Returns the error of a path.
    pub fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            path: path.into(),
            source,
        }
    }

    /// Returns the error of a file or folder that cannot be used for its purpose.
    pub fn unfit(
        what: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unfit {
            what,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Returns the error of a TOML file, in one sentence with the line.
    pub fn toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let line = error
            .span()
            .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        let message = error.message().replace('\n', ", ");
        Self::Configuration(format!("{}{line}: {message}", path.display()))
    }

    /// Whether a retry may succeed, because a connection or a service went away.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Service { code, .. } => matches!(code, Code::Unavailable),
            _ => false,
        }
    }

    /// Returns this error, or if the answer to a request with this key did not come, the error that
    /// says how to ask again.
    pub fn of_request(self, key: &str) -> Self {
        match self {
            Self::Service { message, .. } if message.starts_with(BROKEN) => Self::Unclear {
                key: key.to_owned(),
                reason: message,
            },
            error => error,
        }
    }

    /// Whether a service reported that something does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Service {
                code: Code::NotFound,
                ..
            }
        )
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        // Only a status made by the client has a source: the service sent no status.
        if let Some(cause) = std::error::Error::source(&status) {
            let message = format!("{BROKEN} ({cause})");
            return Self::Service {
                code: Code::Unavailable,
                message,
                field: String::new(),
            };
        }
        let field = status
            .get_details_bad_request()
            .and_then(|details| details.field_violations.into_iter().next())
            .map(|violation| violation.field)
            .unwrap_or_default();
        Self::Service {
            code: status.code(),
            message: status.message().to_owned(),
            field,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Terminal(error),
        }
    }
}

/// Maps the class's name in a failed job's record to an exit code. The job was accepted, so every
/// class counts as a failure except the gate's refusal.
fn job_code(name: &str) -> u8 {
    match Class::from_name(name) {
        Some(Class::FailedPrecondition) => Class::FailedPrecondition.exit_code(),
        _ => 1,
    }
}

/// Returns a service's message, with the wrong field if the message does not name it.
fn status_sentence(code: &Code, message: &str, field: &str) -> String {
    let message = if message.is_empty() {
        code.description()
    } else {
        message
    };
    if field.is_empty() || message.contains(field) {
        message.to_owned()
    } else {
        format!("{field}: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(code: Code) -> Error {
        Error::from(tonic::Status::new(code, "because"))
    }

    #[test]
    fn every_class_has_its_exit_code() {
        let table = [
            (service(Code::InvalidArgument), 2),
            (service(Code::OutOfRange), 2),
            (service(Code::NotFound), 3),
            (service(Code::Unavailable), 4),
            (service(Code::DeadlineExceeded), 4),
            (service(Code::ResourceExhausted), 4),
            (service(Code::FailedPrecondition), 5),
            (service(Code::Internal), 1),
            (service(Code::Aborted), 1),
            (service(Code::AlreadyExists), 1),
            (service(Code::Unknown), 1),
            (service(Code::Cancelled), 130),
            (Error::Runtime(togi_runtime::Error::precondition("x")), 5),
            (Error::Usage("x".into()), 2),
            (Error::Configuration("x".into()), 64),
            (Error::unfit("base", "x", "it is none"), 5),
            (Error::Interrupted(String::new()), 130),
            (service(Code::Unavailable).of_request("k"), 4),
            (Error::file("x", io::ErrorKind::NotFound.into()), 3),
            (Error::file("x", io::ErrorKind::PermissionDenied.into()), 1),
            (Error::from(io::Error::from(io::ErrorKind::BrokenPipe)), 0),
        ];
        for (error, code) in table {
            assert_eq!(error.exit_code(), code, "{error:?}");
        }
    }

    #[test]
    fn a_request_without_an_answer_says_how_to_ask_again() {
        let broken = Error::Service {
            code: Code::Unavailable,
            message: format!("{BROKEN} (reset)"),
            field: String::new(),
        };
        let error = broken.of_request("k1");
        assert_eq!(error.exit_code(), 4);
        assert!(
            error.to_string().contains("--idempotency-key k1"),
            "{error}"
        );
        let answered = service(Code::NotFound).of_request("k1");
        assert!(answered.is_not_found());
    }

    #[test]
    fn a_field_is_named_once() {
        let mut details = tonic_types::ErrorDetails::new();
        details.add_bad_request_violation("recipe.lora.rank", "must be at least 1");
        let status = tonic::Status::with_error_details(
            Code::InvalidArgument,
            "must be at least 1",
            details.clone(),
        );
        assert_eq!(
            Error::from(status).to_string(),
            "recipe.lora.rank: must be at least 1"
        );
        let status = tonic::Status::with_error_details(
            Code::InvalidArgument,
            "recipe.lora.rank must be at least 1",
            details,
        );
        assert_eq!(
            Error::from(status).to_string(),
            "recipe.lora.rank must be at least 1"
        );
    }
}
