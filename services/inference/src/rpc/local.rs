//! The messages of `Generate` without a network: asks a base in this process.

use togi_proto::inference::v1 as proto;

use crate::error::Result;
use crate::local::{Local, MAX_PROMPT_BYTES};
use crate::rpc::answers::{self, Answers};
use crate::rpc::parse::{self, Limits};

/// Answers a request as the service would; the request's `adapter` must be empty.
///
/// # Errors
/// Those of the service: a wrong field by its path.
pub async fn ask(local: &Local, request: proto::GenerateRequest) -> Result<Answers> {
    let request = parse::request(
        request,
        Limits {
            max_prompt_bytes: MAX_PROMPT_BYTES,
            vocab_size: local.config().vocab_size,
            longest: local.config().max_position_embeddings,
        },
    )?;
    Ok(answers::stream(local.answer(request).await?))
}
