//! Names of span and metric attributes. `gen_ai.*` are OpenTelemetry's conventions for generative
//! AI, repeated here because the Rust constants are deprecated while their status is "development".

/// The operation: `text_completion`.
pub const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
/// The provider: `togi`.
pub const GEN_AI_PROVIDER_NAME: &str = "gen_ai.provider.name";
/// The requested alias, generation or base.
pub const GEN_AI_REQUEST_MODEL: &str = "gen_ai.request.model";
/// Requested temperature.
pub const GEN_AI_REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
/// Requested nucleus.
pub const GEN_AI_REQUEST_TOP_P: &str = "gen_ai.request.top_p";
/// Requested number of candidates.
pub const GEN_AI_REQUEST_TOP_K: &str = "gen_ai.request.top_k";
/// Requested limit of the answer, in tokens.
pub const GEN_AI_REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
/// The seed of the draws.
pub const GEN_AI_REQUEST_SEED: &str = "gen_ai.request.seed";
/// The answering generation, or the name of the base.
pub const GEN_AI_RESPONSE_MODEL: &str = "gen_ai.response.model";
/// The reason of the answer's end.
pub const GEN_AI_RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens in the prompt.
pub const GEN_AI_USAGE_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens in the answer.
pub const GEN_AI_USAGE_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// The side of a token: `input` or `output`.
pub const GEN_AI_TOKEN_TYPE: &str = "gen_ai.token.type";
/// An error's class.
pub const ERROR_TYPE: &str = "error.type";

/// The operation of `Generate`.
pub const TEXT_COMPLETION: &str = "text_completion";
/// The provider of every answer.
pub const PROVIDER: &str = "togi";

pub use togi_runtime::telemetry::semconv::{ALIAS, GENERATION};
/// An alias's revision.
pub const REVISION: &str = "togi.alias.revision";
/// This replica.
pub const REPLICA: &str = "togi.replica";
/// The outcome of a load: `loaded`, `rejected`, `deferred` or `overtaken`.
pub const OUTCOME: &str = "togi.outcome";
/// Where adapters are: `device` or `host`.
pub const TIER: &str = "togi.tier";
/// The reason of an answer's end, as a label.
pub const FINISH_REASON: &str = "togi.finish_reason";
