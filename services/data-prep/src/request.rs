//! A preparation as requested, in our own types, and the check that its records and its tokenizer
//! exist.

use std::sync::Arc;

use togi_tokens::row::Settings;
use togi_tokens::shape::Shape;
use togi_tokens::tokenizer::Tokenizer;

use crate::error::Result;
use crate::input::Format;
use crate::pipeline::OnBadRecord;
use crate::source::{Finder, Located, RecordsFrom};
use crate::splits::Choice;
use crate::tokenizers::{TokenizerFrom, Tokenizers};

/// A preparation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The data set's name.
    pub name: String,
    /// Where the records are.
    pub records: RecordsFrom,
    /// Which of the records' splits are read.
    pub splits: Choice,
    /// The files' format; detected from the bytes of each if not set.
    pub format: Option<Format>,
    /// The shape of the records; detected from each file's content if not set.
    pub shape: Option<Shape>,
    /// Where the tokenizer is.
    pub tokenizer: TokenizerFrom,
    /// How records become rows.
    pub settings: Settings,
    /// The effect of a bad record.
    pub on_bad_record: OnBadRecord,
    /// Tokenizing threads; the configuration's number if not set.
    pub workers: Option<usize>,
}

/// Finds the records and the tokenizers that requests name.
#[derive(Clone)]
pub struct Resolver {
    /// Finds records.
    pub finder: Finder,
    /// Finds tokenizers.
    pub tokenizers: Tokenizers,
}

impl Resolver {
    /// Checks a request before it is queued, without reading its records.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound` or `FailedPrecondition` with the field's name.
    pub async fn check(&self, request: &Request) -> Result<()> {
        self.finder.check(&request.records).await?;
        self.tokenizers.load(&request.tokenizer).await?;
        Ok(())
    }

    /// Finds a request's records and its tokenizer when it runs.
    ///
    /// # Errors
    /// As [`Resolver::check`].
    pub async fn resolve(&self, request: &Request) -> Result<(Located, Arc<Tokenizer>)> {
        let located = self.finder.find(&request.records, &request.splits).await?;
        Ok((located, self.tokenizers.load(&request.tokenizer).await?))
    }
}
