//! The errors of object stores: which of them may pass, and for the others the cause, the setting
//! and what to do. It knows the texts of the crate `object_store`, whose own types are private.

use std::error::Error as StdError;
use std::io::ErrorKind;

use crate::error::class::Class;
use crate::error::{Error, scrub};

/// `object_store` begins so the text of an answer that is no success; status and body follow.
const STATUS_TEXT: &str = "Server returned non-2xx status code: ";
/// `object_store` says so if S3 redirects to another region without an address.
const REDIRECT_TEXT: &str = "Received redirect without LOCATION";

const EXPIRED: &str = "the object store's credentials have expired: renew them \
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or store.secrets) and start again";
const REFUSED: &str = "the object store refuses our credentials: check the key and its rights \
    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or store.secrets)";
const CLOCK: &str = "the object store refuses the time of this machine: set its clock";
const REGION: &str = "the object store's bucket is in another region: set store.options.region \
    (or AWS_REGION) to the bucket's region";
const NO_BUCKET: &str =
    "the object store has no such bucket: create it, or name another with store.url";
const NO_LINKS: &str = "the file system of the store's folder does not allow hard links, which \
    create an object only once: put the folder (store.url, or --data) on another file system";
const FORBIDDEN: &str = "the store's folder cannot be written: give this user the right to \
    write there, or name another folder (store.url, or --data)";

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        Error::of_object("", error)
    }
}

impl Error {
    /// Returns the error of an operation on an object. `key` is empty where the operation has no
    /// object. The store's texts may hold signed URLs and paths of the machine, so they are
    /// scrubbed and kept as the cause.
    #[must_use]
    pub fn of_object(key: &str, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let named = if key.is_empty() {
            "the object".to_owned()
        } else {
            format!("object {key}")
        };
        let answer = Answer::of(&error);
        let (class, message) = match &error {
            _ if let Some(lasting) = answer.as_ref().and_then(Answer::lasting) => lasting,
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
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                (Class::FailedPrecondition, REFUSED.to_owned())
            }
            E::UnknownConfigurationKey { key, .. } => (
                Class::InvalidArgument,
                format!("the object store has no option \"{key}\""),
            ),
            _ if let Some(message) = forbidden(&error) => {
                (Class::FailedPrecondition, message.to_owned())
            }
            _ if let Some(kind) = irregular(&error) => {
                (Class::FailedPrecondition, format!("{named} {kind}"))
            }
            _ => (
                Class::Unavailable,
                format!("{named} cannot be read or written now"),
            ),
        };
        Error::new(class, message).with_source(scrub(&error.to_string()))
    }
}

/// An answer of a server that is no success.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// S3's name of the error, for example `ExpiredToken`; empty without one.
    code: String,
    body: String,
}

impl Answer {
    fn of(error: &object_store::Error) -> Option<Self> {
        let text = causes(error).last()?.to_string();
        if text.starts_with(REDIRECT_TEXT) {
            return Some(Self {
                status: 301,
                code: "PermanentRedirect".to_owned(),
                body: String::new(),
            });
        }
        let (status, body) = text.strip_prefix(STATUS_TEXT)?.split_once(": ")?;
        Some(Self {
            status: status.split(' ').next()?.parse().ok()?,
            code: element(body, "Code").unwrap_or_default().to_owned(),
            body: body.to_owned(),
        })
    }

    /// Returns class and message if asking again, with the same settings, gets the same answer.
    fn lasting(&self) -> Option<(Class, String)> {
        let refused = |message: &str| Some((Class::FailedPrecondition, message.to_owned()));
        match (self.status, self.code.as_str()) {
            (_, "NoSuchBucket") => Some((Class::NotFound, NO_BUCKET.to_owned())),
            (_, "ExpiredToken" | "TokenRefreshRequired" | "RequestExpired") => refused(EXPIRED),
            (_, "RequestTimeTooSkewed") => refused(CLOCK),
            (_, "InvalidToken" | "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                refused(REFUSED)
            }
            (301, _)
            | (
                _,
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ) => refused(&self.region()),
            (501, code) => Some((
                Class::Unimplemented,
                format!("the object store does not implement this operation (501 {code})"),
            )),
            // Of the other answers to a wrong request, these have a meaning that callers use, and
            // the others depend on the moment.
            (401 | 403 | 404 | 409 | 412, _) | (408 | 425 | 429, _) => None,
            (_, "RequestTimeout" | "IncompleteBody" | "SlowDown" | "OperationAborted") => None,
            (status @ 400..=499, code) => refused(&format!(
                "the object store refuses the request ({}): check store.url and store.options",
                format!("{status} {code}").trim_end()
            )),
            _ => None,
        }
    }

    /// Says that the region is wrong, with the right one if the server names it.
    fn region(&self) -> String {
        let expected = || self.body.split_once("expecting '")?.1.split('\'').next();
        match element(&self.body, "Region").or_else(expected) {
            Some(region) => format!("{REGION}, {region}"),
            None => REGION.to_owned(),
        }
    }
}

/// Returns the text of an XML element without attributes and children.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0.trim())
}

/// Returns the reason of a file system that will not do it at any time.
fn forbidden(error: &object_store::Error) -> Option<&'static str> {
    // The number, because `ErrorKind` is the same for EPERM and EACCES.
    const EPERM: i32 = 1;
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
    match cause.kind() {
        ErrorKind::Unsupported => Some(NO_LINKS),
        ErrorKind::PermissionDenied if cause.raw_os_error() == Some(EPERM) => Some(NO_LINKS),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Some(FORBIDDEN),
        _ => None,
    }
}

/// Returns what an object is instead of a regular file.
fn irregular(error: &object_store::Error) -> Option<String> {
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
    let ours = cause.kind() == ErrorKind::InvalidInput && cause.raw_os_error().is_none();
    ours.then(|| cause.to_string())
}

/// Returns the error and its causes, outermost first.
fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |error| StdError::source(*error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            code: element(body, "Code").unwrap_or_default().to_owned(),
            body: body.to_owned(),
        }
    }

    #[test]
    fn an_answer_that_stays_the_same_has_a_class_and_one_that_may_pass_has_none() {
        let code =
            |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        let lasting = [
            (400, "ExpiredToken", Class::FailedPrecondition, EXPIRED),
            (
                400,
                "AuthorizationHeaderMalformed",
                Class::FailedPrecondition,
                REGION,
            ),
            (301, "", Class::FailedPrecondition, REGION),
            (
                403,
                "RequestTimeTooSkewed",
                Class::FailedPrecondition,
                CLOCK,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                Class::FailedPrecondition,
                REFUSED,
            ),
            (404, "NoSuchBucket", Class::NotFound, NO_BUCKET),
            (
                501,
                "NotImplemented",
                Class::Unimplemented,
                "(501 NotImplemented)",
            ),
            (
                400,
                "InvalidRequest",
                Class::FailedPrecondition,
                "(400 InvalidRequest)",
            ),
            (405, "", Class::FailedPrecondition, "(405)"),
        ];
        for (status, name, class, says) in lasting {
            let (found, message) = answer(status, &code(name)).lasting().unwrap();
            assert_eq!(found, class, "{status} {name}");
            assert!(message.contains(says), "{status} {name}: {message}");
        }
        let passing = [
            (500, "InternalError"),
            (503, "SlowDown"),
            (502, ""),
            (429, ""),
            (408, ""),
            (400, "RequestTimeout"),
            (404, "NoSuchKey"),
            (409, "ConditionalRequestConflict"),
            (412, "PreconditionFailed"),
        ];
        for (status, name) in passing {
            assert_eq!(
                answer(status, &code(name)).lasting(),
                None,
                "{status} {name}"
            );
        }
    }

    #[test]
    fn the_region_that_the_server_names_is_said() {
        let message = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region \
            'us-east-1' is wrong; expecting 'ap-northeast-1'</Message></Error>";
        let body =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
        for (body, region) in [(message, "ap-northeast-1"), (body, "eu-west-1")] {
            let said = answer(400, body).region();
            assert!(said.ends_with(region), "{said}");
        }
    }
}
