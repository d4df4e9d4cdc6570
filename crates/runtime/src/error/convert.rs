//! Conversions: other crates' errors into ours, and ours to gRPC and back.

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::Error;
use crate::error::class::Class;

/// The reason in a status's `ErrorInfo` where it is not known whether the request took effect. Its
/// metadata have the key with which the request may be repeated.
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
const KEY: &str = "idempotency_key";
const DOMAIN: &str = "togi";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if error.class == Class::Internal {
            tracing::error!(error = error.chain(), "internal error answered to a client");
        }
        let mut details = ErrorDetails::new();
        if let Some(field) = &error.field {
            details.add_bad_request_violation(field, &error.message);
        }
        if let Some(time) = error.retry_after {
            details.set_retry_info(Some(time));
        }
        if let Some(key) = &error.retry_key {
            let metadata = [(KEY.to_owned(), key.clone())];
            details.set_error_info(OUTCOME_UNKNOWN, DOMAIN, metadata);
        }
        if error.field.is_none() && error.retry_after.is_none() && error.retry_key.is_none() {
            return Status::new(error.class.code(), error.message);
        }
        Status::with_error_details(error.class.code(), error.message, details)
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
        error.retry_after = status
            .get_details_retry_info()
            .and_then(|retry| retry.retry_delay);
        error.retry_key = status
            .get_details_error_info()
            .filter(|info| info.reason == OUTCOME_UNKNOWN)
            .and_then(|mut info| info.metadata.remove(KEY));
        error
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
        // A thing that is no regular file: the text says which, and has no path.
        if error.kind() == K::InvalidInput && error.raw_os_error().is_none() {
            return Error::new(Class::FailedPrecondition, format!("the file {error}"));
        }
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
