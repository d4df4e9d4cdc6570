//! What is checked before a preparation is queued, and found again when it runs: its records and
//! its tokenizer.

use togi_proto::dataprep::v1 as proto;

use crate::Result;
use crate::request::Request;
use crate::source::Finder;
use crate::tokenizers::Tokenizers;

/// Knows what requests may name.
#[derive(Clone)]
pub struct Submissions {
    /// Finds records.
    pub finder: Finder,
    /// Finds tokenizers.
    pub tokenizers: Tokenizers,
}

impl Submissions {
    /// Checks a request as far as that is possible without reading the records.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound` or `FailedPrecondition` with the field's name.
    pub async fn check(&self, request: proto::PrepareRequest) -> Result<Request> {
        let request = Request::try_from(request)?;
        self.finder.check(&request.records).await?;
        self.tokenizers.load(&request.tokenizer).await?;
        Ok(request)
    }
}
