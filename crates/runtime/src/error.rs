//! The runtime's error: a class, a sentence, the field at fault. Code decides by the class, never
//! by the text.

use std::error::Error as StdError;
use std::time::Duration;

mod class;
mod convert;
mod object;
pub use class::{Class, code_name};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// An error with a class. Clients see its text, so the text names no credential and no address or
/// path of the machine.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: Class,
    message: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    retry_key: Option<String>,
    source: Option<Source>,
}

impl Error {
    /// Returns an error of a class; the message is lower-case and has no final stop.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            field: None,
            retry_after: None,
            retry_key: None,
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

    /// Says when a client may try again.
    #[must_use]
    pub fn with_retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    /// Says that it is not known whether the request took effect, and with which idempotency key it
    /// may be repeated.
    #[must_use]
    pub fn with_retry_key(mut self, key: impl Into<String>) -> Self {
        self.retry_key = Some(key.into());
        self
    }

    /// Keeps the cause, which logs show and clients never see.
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

    /// Returns the field at fault.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// Returns the time after which a client may try again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the idempotency key with which to repeat a request whose outcome is not known.
    #[must_use]
    pub fn retry_key(&self) -> Option<&str> {
        self.retry_key.as_deref()
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
    fn a_field_travels_through_a_status() {
        let status = Status::from(Error::invalid("recipe.lora.rank", "must be at least 1"));
        let error = Error::from(status);
        assert_eq!(error.class(), Class::InvalidArgument);
        assert_eq!(error.field(), Some("recipe.lora.rank"));
        assert_eq!(error.message(), "must be at least 1");
    }

    #[test]
    fn a_time_to_come_back_travels_through_a_status() {
        let time = Duration::from_millis(2500);
        let full = Error::new(Class::ResourceExhausted, "full").with_retry_after(time);
        let error = Error::from(Status::from(full));
        assert_eq!(error.class(), Class::ResourceExhausted);
        assert_eq!((error.retry_after(), error.field()), (Some(time), None));
    }

    #[test]
    fn a_key_to_ask_again_with_travels_through_a_status() {
        let unclear = Error::unavailable("unclear").with_retry_key("k1");
        let error = Error::from(Status::from(unclear));
        assert_eq!(error.class(), Class::Unavailable);
        assert_eq!((error.retry_key(), error.field()), (Some("k1"), None));
    }

    #[test]
    fn credentials_and_signatures_do_not_show() {
        let text = scrub("GET https://key:secret@host:9000/b/k?X-Amz-Signature=abc failed");
        assert_eq!(text, "GET https://host:9000/b/k failed");
    }
}
