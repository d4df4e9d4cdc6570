//! What other crates' errors are to us, and ours to gRPC.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Class, Error, scrub};

impl Class {
    /// The one table of what a class means outside: gRPC code, HTTP status, exit code of a
    /// service's process.
    pub(super) const fn answer(self) -> (Code, u16, u8) {
        match self {
            Class::InvalidArgument => (Code::InvalidArgument, 400, 1),
            Class::NotFound => (Code::NotFound, 404, 3),
            Class::AlreadyExists => (Code::AlreadyExists, 409, 1),
            Class::FailedPrecondition => (Code::FailedPrecondition, 400, 1),
            Class::ResourceExhausted => (Code::ResourceExhausted, 429, 1),
            Class::Unavailable => (Code::Unavailable, 503, 4),
            Class::Aborted => (Code::Aborted, 409, 1),
            Class::Cancelled => (Code::Cancelled, 499, 130),
            Class::DataLoss => (Code::DataLoss, 500, 1),
            Class::DeadlineExceeded => (Code::DeadlineExceeded, 504, 4),
            Class::Unimplemented => (Code::Unimplemented, 501, 1),
            Class::Unauthenticated => (Code::Unauthenticated, 401, 1),
            Class::PermissionDenied => (Code::PermissionDenied, 403, 1),
            Class::Internal => (Code::Internal, 500, 1),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if error.class == Class::Internal {
            tracing::error!(error = error.chain(), "internal error answered to a client");
        }
        match &error.field {
            Some(field) => {
                let details = ErrorDetails::with_bad_request_violation(field, &error.message);
                Status::with_error_details(error.class.code(), error.message, details)
            }
            None => Status::new(error.class.code(), error.message),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let field = status
            .get_details_bad_request()
            .and_then(|bad| bad.field_violations.into_iter().next())
            .map(|violation| violation.field);
        let mut error = Error::new(Class::from_code(status.code()), status.message());
        error.field = field;
        error
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        Error::of_object("", error)
    }
}

impl Error {
    /// Returns the error of an operation on an object; the key may be empty where there is none.
    /// The store's own texts may hold URLs with signatures and paths of the machine: they stay
    /// in the cause, scrubbed.
    #[must_use]
    pub fn of_object(key: &str, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let named = if key.is_empty() {
            "the object".to_owned()
        } else {
            format!("object {key}")
        };
        let (class, message) = match &error {
            E::NotFound { .. } => (Class::NotFound, format!("{named} does not exist")),
            E::AlreadyExists { .. } => (Class::AlreadyExists, format!("{named} exists already")),
            E::Precondition { .. } | E::NotModified { .. } => {
                (Class::Aborted, format!("{named} was changed meanwhile"))
            }
            E::InvalidPath { .. } => (Class::InvalidArgument, "not an object key".to_owned()),
            E::NotSupported { .. } | E::NotImplemented { .. } => (
                Class::Unimplemented,
                "the object store does not know this operation".to_owned(),
            ),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => (
                Class::FailedPrecondition,
                "the object store refuses our credentials".to_owned(),
            ),
            E::UnknownConfigurationKey { key, .. } => (
                Class::InvalidArgument,
                format!("the object store has no option \"{key}\""),
            ),
            _ => (
                Class::Unavailable,
                format!("{named} cannot be read or written now"),
            ),
        };
        Error::new(class, message).with_source(scrub(&error.to_string()))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let class = match error.kind() {
            K::NotFound => Class::NotFound,
            K::AlreadyExists => Class::AlreadyExists,
            K::StorageFull | K::QuotaExceeded => Class::ResourceExhausted,
            K::ConnectionRefused | K::ConnectionReset | K::BrokenPipe | K::NotConnected => {
                Class::Unavailable
            }
            K::TimedOut => Class::DeadlineExceeded,
            _ => Class::Internal,
        };
        Error::new(class, format!("input or output failed: {}", error.kind())).with_source(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::new(
            Class::InvalidArgument,
            format!("not the expected JSON: {error}"),
        )
    }
}

impl From<tonic::transport::Error> for Error {
    fn from(error: tonic::transport::Error) -> Self {
        Error::new(Class::Unavailable, "the gRPC connection failed").with_source(error)
    }
}
