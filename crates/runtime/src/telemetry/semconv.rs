//! The names of OpenTelemetry's attributes and metrics: the stable ones of rpc, and the current
//! ones of messaging, which are not stable yet.

/// The rpc system: always `grpc`.
pub const RPC_SYSTEM_NAME: &str = "rpc.system.name";
/// The fully qualified method, `pkg.Service/Method`.
pub const RPC_METHOD: &str = "rpc.method";
/// The gRPC code's name, for example `OK`.
pub const RPC_STATUS_CODE: &str = "rpc.status_code";
/// Histogram in seconds: duration of a call at the server, with the whole stream.
pub const RPC_SERVER_CALL_DURATION: &str = "rpc.server.call.duration";
/// Histogram in seconds: duration of a message's handler.
pub const MESSAGING_PROCESS_DURATION: &str = "messaging.process.duration";
/// Counter: messages published.
pub const MESSAGING_SENT_MESSAGES: &str = "messaging.client.sent.messages";
/// Counter: messages received.
pub const MESSAGING_CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
/// The messaging system: always `nats`.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// The subject's template, of low cardinality.
pub const MESSAGING_DESTINATION_TEMPLATE: &str = "messaging.destination.template";
/// The outcome, for example `succeeded`.
pub const OUTCOME: &str = "togi.job.outcome";

/// An alias.
pub const ALIAS: &str = "togi.alias";
/// A generation.
pub const GENERATION: &str = "togi.generation";
