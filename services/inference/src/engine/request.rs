//! A valid request: the answerer, the text of the prompt, the options. Only the prompt's length in
//! tokens is not checked yet.

use std::sync::Arc;
use std::time::Duration;

use togi_common::{AliasName, Generation};
use togi_runtime::layout;

use crate::engine::options::Options;
use crate::error::Result;

/// How urgent a request is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// It may wait for all others.
    Batch,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The name that requests are shared out by.
    pub(crate) client: Arc<str>,
    /// The time that the client waits, from the request's arrival.
    pub(crate) timeout: Option<Duration>,
}

/// A valid request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) answerer: Answerer,
    /// The whole prompt, newlines written `<NL>`.
    pub(crate) prompt: String,
    /// The field of the prompt, for errors about it.
    pub(crate) prompt_field: &'static str,
    pub(crate) options: Options,
    pub(crate) priority: Priority,
    /// The longest time until the answer's end, from the request's arrival.
    pub(crate) max_time: Option<Duration>,
}

/// The base or the adapter that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// The base alone.
    Base,
    /// The generation that the alias names when the request arrives.
    Alias(AliasName),
    /// This generation.
    Generation(Generation),
}

impl Answerer {
    /// Reads the name in a request: empty, a generation, or an alias.
    ///
    /// # Errors
    /// A name that is neither a generation nor valid for an alias.
    pub(crate) fn from_name(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::Base);
        }
        if let Ok(generation) = name.parse() {
            return Ok(Self::Generation(generation));
        }
        Ok(Self::Alias(layout::parse("adapter", name)?))
    }

    /// Returns the name in the request; empty for the base.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Base => String::new(),
            Self::Alias(alias) => alias.to_string(),
            Self::Generation(generation) => generation.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use togi_runtime::error::Class;

    use super::*;

    #[test]
    fn names_with_slashes_and_dots_are_refused() {
        for name in ["a/b", "..", "../x", "a..b/", "a b", "あ", &"x".repeat(300)] {
            let error = Answerer::from_name(name).unwrap_err();
            assert_eq!(error.class(), Class::InvalidArgument, "{name}: {error}");
            assert!(error.to_string().contains("adapter"), "{error}");
        }
    }

    #[test]
    fn a_digest_names_a_generation_and_all_else_an_alias() {
        let digest = "0123456789abcdef".repeat(4);
        let table = [
            (&*digest, Answerer::Generation(digest.parse().unwrap())),
            ("", Answerer::Base),
            ("demo", Answerer::Alias("demo".parse().unwrap())),
        ];
        for (name, expected) in table {
            let answerer = Answerer::from_name(name).unwrap();
            assert_eq!(answerer, expected);
            assert_eq!(answerer.name(), name);
        }
    }
}
