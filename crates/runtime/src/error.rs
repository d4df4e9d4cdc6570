//! The runtime's error: a class, a sentence, the field at fault. The class alone decides the gRPC
//! code, the fate of a job and the exit code; nobody matches on the text.

use std::error::Error as StdError;

use tonic::Code;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

mod convert;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What kind of error it is: one of gRPC's codes that Togi uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// What the request names does not exist.
    NotFound,
    /// It exists already, and otherwise.
    AlreadyExists,
    /// The system's state does not allow it; repeating does not help until that changes.
    FailedPrecondition,
    /// A queue, quota or device is full.
    ResourceExhausted,
    /// A part of the system cannot be reached at the moment.
    Unavailable,
    /// Somebody else won: a lost lease, a stale revision.
    Aborted,
    /// Somebody asked for the end.
    Cancelled,
    /// Bytes are not what their digest or manifest says.
    DataLoss,
    /// It took too long.
    DeadlineExceeded,
    /// Known by name, not built.
    Unimplemented,
    /// The caller did not say who it is, or its credentials are not valid.
    Unauthenticated,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// A fault of our own.
    Internal,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 14] = [
        Class::InvalidArgument,
        Class::NotFound,
        Class::AlreadyExists,
        Class::FailedPrecondition,
        Class::ResourceExhausted,
        Class::Unavailable,
        Class::Aborted,
        Class::Cancelled,
        Class::DataLoss,
        Class::DeadlineExceeded,
        Class::Unimplemented,
        Class::Unauthenticated,
        Class::PermissionDenied,
        Class::Internal,
    ];

    /// Returns whether another attempt of the same job may succeed. `Internal` may: a panic or a
    /// full disk often passes, and five attempts bound what does not. So may the access
    /// classes: a token is renewed or a right granted without any change to the job.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Class::Unavailable
                | Class::Aborted
                | Class::ResourceExhausted
                | Class::DeadlineExceeded
                | Class::Unauthenticated
                | Class::PermissionDenied
                | Class::Internal
        )
    }

    /// Returns the gRPC code.
    #[must_use]
    pub const fn code(self) -> Code {
        self.answer().0
    }

    /// Returns the HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.answer().1
    }

    /// Returns the class of a gRPC code; codes that Togi does not send count as their nearest
    /// relative.
    #[must_use]
    pub fn from_code(code: Code) -> Class {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Class::InvalidArgument,
            Code::NotFound => Class::NotFound,
            Code::AlreadyExists => Class::AlreadyExists,
            Code::FailedPrecondition => Class::FailedPrecondition,
            Code::Unauthenticated => Class::Unauthenticated,
            Code::PermissionDenied => Class::PermissionDenied,
            Code::ResourceExhausted => Class::ResourceExhausted,
            Code::Unavailable => Class::Unavailable,
            Code::Aborted => Class::Aborted,
            Code::Cancelled => Class::Cancelled,
            Code::DataLoss => Class::DataLoss,
            Code::DeadlineExceeded => Class::DeadlineExceeded,
            Code::Unimplemented => Class::Unimplemented,
            Code::Ok | Code::Unknown | Code::Internal => Class::Internal,
        }
    }

    /// Returns the gRPC code's name, for example `INVALID_ARGUMENT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        code_name(self.code())
    }

    /// Returns the class with that [`Class::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Returns the exit code of a process that ends by such an error.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        self.answer().2
    }
}

/// Returns a gRPC code's name, for example `INVALID_ARGUMENT`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An error with a class. Its text is for clients too: it names no credential, address or path of
/// the machine.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: Class,
    message: String,
    field: Option<String>,
    source: Option<Source>,
}

impl Error {
    /// Returns an error of a class; the message is lower-case and has no final stop.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            field: None,
            source: None,
        }
    }

    /// Returns an `InvalidArgument` about a request's field, for example `recipe.lora.rank`.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Class::InvalidArgument, message).with_field(field)
    }

    /// Returns a `NotFound`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Class::NotFound, message)
    }

    /// Returns a `FailedPrecondition`.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Class::FailedPrecondition, message)
    }

    /// Returns an `Unavailable`.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Class::Unavailable, message)
    }

    /// Returns a `DataLoss`.
    pub fn data_loss(message: impl Into<String>) -> Self {
        Self::new(Class::DataLoss, message)
    }

    /// Returns an `Internal`.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message)
    }

    /// Names the request's field at fault.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Keeps the cause: for logs, never for clients.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
    }

    /// Returns the field at fault, if there is one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// Returns the sentence for clients.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the message and those of all causes, for logs.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Returns a text without URL credentials and query strings, which may be signatures.
#[must_use]
pub fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for (place, word) in text.split(' ').enumerate() {
        if place > 0 {
            clean.push(' ');
        }
        let Some((scheme, rest)) = word.split_once("://") else {
            clean.push_str(word);
            continue;
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let host = authority.rsplit('@').next().unwrap_or_default();
        clean.push_str(&format!("{scheme}://{host}{path}"));
    }
    clean
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn every_class_maps_to_its_code_and_back() {
        for class in Class::ALL {
            let status = Status::from(Error::new(class, "a sentence"));
            assert_eq!(status.code(), class.code());
            assert_eq!(Class::from_code(status.code()), class);
            assert_eq!(Class::from_name(class.name()), Some(class));
            assert_eq!(status.message(), "a sentence");
        }
    }

    #[test]
    fn a_field_travels_through_a_status() {
        let status = Status::from(Error::invalid("recipe.lora.rank", "must be at least 1"));
        let error = Error::from(status);
        assert_eq!(error.class(), Class::InvalidArgument);
        assert_eq!(error.field(), Some("recipe.lora.rank"));
        assert_eq!(error.message(), "must be at least 1");
    }

    #[test]
    fn a_peer_that_refuses_access_is_no_final_failure() {
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            let error = Error::from(Status::new(code, "no"));
            assert_eq!(error.class().code(), code);
            assert!(error.class().retryable());
            assert_eq!(error.class().exit_code(), 1);
        }
        assert_eq!(Class::Unauthenticated.http_status(), 401);
        assert_eq!(Class::PermissionDenied.http_status(), 403);
    }

    #[test]
    fn which_classes_deserve_another_attempt() {
        let retryable: Vec<&str> = Class::ALL
            .into_iter()
            .filter(|c| c.retryable())
            .map(Class::name)
            .collect();
        assert_eq!(
            retryable,
            [
                "RESOURCE_EXHAUSTED",
                "UNAVAILABLE",
                "ABORTED",
                "DEADLINE_EXCEEDED",
                "UNAUTHENTICATED",
                "PERMISSION_DENIED",
                "INTERNAL"
            ]
        );
    }

    #[test]
    fn credentials_and_signatures_do_not_show() {
        let text = scrub("GET https://key:secret@host:9000/b/k?X-Amz-Signature=abc failed");
        assert_eq!(text, "GET https://host:9000/b/k failed");
    }
}
