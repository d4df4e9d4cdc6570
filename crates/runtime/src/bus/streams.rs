//! The streams and buckets of Togi. Missing ones are created. Contradicting ones are refused,
//! because a stream with another retention would lose work silently.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};

use crate::error::{Class, Error, Result};
use crate::events;

/// Bucket of the jobs' records.
pub const JOBS_BUCKET: &str = "togi_jobs";
/// Bucket of what each alias names: a mirror of the store.
pub const ALIASES_BUCKET: &str = "togi_aliases";
/// Bucket of the policies.
pub const POLICIES_BUCKET: &str = "togi_policies";
/// Bucket of what each inference replica serves; entries expire after [`REPLICA_LIFETIME`].
pub const REPLICAS_BUCKET: &str = "togi_replicas";
/// How long a replica's entry lives without being refreshed.
pub const REPLICA_LIFETIME: Duration = Duration::from_secs(30);

const NO_JETSTREAM: &str = "NATS runs without JetStream: start nats-server with -js or a jetstream \
    section in its configuration, or name another server (nats.url)";
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: i64 = 1 << 20;

/// Creates the missing streams and checks the present ones.
///
/// # Errors
/// `FailedPrecondition` naming the stream and the setting that contradicts, or what the server
/// lacks; `Unavailable` if JetStream does not answer.
pub(crate) async fn ensure(js: &jetstream::Context, replicas: usize) -> Result<()> {
    for wanted in declared(replicas) {
        match js.get_stream(&wanted.name).await {
            Ok(found) => compare(&wanted, &found.cached_info().config)?,
            Err(error) if is_missing(&error) => create(js, wanted).await?,
            Err(error) => {
                let refusal = match error.kind() {
                    GetStreamErrorKind::JetStream(inner) => refusal(inner.error_code()),
                    _ => without_jetstream(js),
                };
                return Err(refusal
                    .unwrap_or_else(|| Error::unavailable("JetStream does not answer"))
                    .with_source(error));
            }
        }
    }
    Ok(())
}

fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(inner)
        if inner.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn create(js: &jetstream::Context, wanted: Config) -> Result<()> {
    let name = wanted.name.clone();
    // Two services may create it at once; the server accepts the same configuration twice.
    match js.create_stream(wanted.clone()).await {
        Ok(_) => {
            tracing::debug!(stream = name, "stream created");
            Ok(())
        }
        Err(error) => match js.get_stream(&name).await {
            Ok(found) => compare(&wanted, &found.cached_info().config),
            Err(_) => {
                let refusal = match error.kind() {
                    CreateStreamErrorKind::JetStream(inner) => refusal(inner.error_code()),
                    _ => None,
                };
                let passing = || Error::unavailable(format!("stream {name} cannot be created now"));
                Err(refusal.unwrap_or_else(passing).with_source(error))
            }
        },
    }
}

/// Returns the error of an answer that stays the same until NATS is configured otherwise.
fn refusal(code: ErrorCode) -> Option<Error> {
    let message = match code {
        ErrorCode::JETSTREAM_NOT_ENABLED => NO_JETSTREAM,
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            "NATS has no JetStream for our account: enable it there, or use another account \
             (nats.credentials, nats.url)"
        }
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::CLUSTER_REQUIRED => {
            "NATS is one server and keeps no copies of a stream: set nats.replicas to 1, or use \
             a cluster"
        }
        _ => return None,
    };
    Some(Error::precondition(message))
}

/// Returns the error of a server that says at the connection that it has no JetStream. In a cluster
/// another server may have it.
fn without_jetstream(js: &jetstream::Context) -> Option<Error> {
    let server = js.client().server_info();
    let single = !server.server_id.is_empty() && server.cluster.is_none();
    (single && !server.jetstream).then(|| Error::precondition(NO_JETSTREAM))
}

fn declared(replicas: usize) -> Vec<Config> {
    let stream = |name: &str, subjects: &str, max_bytes: i64, max_age: Duration| Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        max_bytes,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_age,
        max_message_size: 128 << 10,
        duplicate_window: Duration::from_secs(600),
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        ..Config::default()
    };
    let progress = Config {
        // One message a subject does not contradict "discard: new". Without
        // `discard_new_per_subject` the limit of a subject drops its old message, as in a key-value
        // bucket, and "discard: new" only refuses messages beyond the stream's size.
        max_messages_per_subject: 1,
        discard_new_per_subject: false,
        ..stream(events::PROGRESS_STREAM, events::ALL_PROGRESS, 16 * MIB, DAY)
    };
    let bucket = |name: &str, max_bytes: i64, max_age: Duration| Config {
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_purge: false,
        duplicate_window: Duration::from_secs(if max_age.is_zero() { 120 } else { 10 }),
        ..stream(
            &format!("KV_{name}"),
            &format!("$KV.{name}.>"),
            max_bytes,
            max_age,
        )
    };
    let jobs = Config {
        // Revisions are fences and must rise even after JetStream's folder was wiped, or an old
        // worker's fence could be issued again. So a new bucket starts at the time.
        first_sequence: Some(milliseconds()),
        ..bucket(JOBS_BUCKET, 256 * MIB, Duration::ZERO)
    };
    vec![
        stream(events::JOBS_STREAM, events::ALL_JOBS, 64 * MIB, 30 * DAY),
        stream(
            events::EVENTS_STREAM,
            events::ALL_EVENTS,
            256 * MIB,
            30 * DAY,
        ),
        stream(events::DEAD_STREAM, events::ALL_DEAD, 64 * MIB, 90 * DAY),
        progress,
        jobs,
        bucket(ALIASES_BUCKET, 8 * MIB, Duration::ZERO),
        bucket(POLICIES_BUCKET, 8 * MIB, Duration::ZERO),
        bucket(REPLICAS_BUCKET, 8 * MIB, REPLICA_LIFETIME),
    ]
}

fn milliseconds() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(1)
}

/// Settings that could lose work are refused; sizes and ages are the operator's choice.
fn compare(wanted: &Config, found: &Config) -> Result<()> {
    let subjects = |config: &Config| {
        let mut subjects = config.subjects.clone();
        subjects.sort();
        subjects.join(", ")
    };
    let rows = [
        ("subjects", subjects(wanted), subjects(found)),
        (
            "retention",
            format!("{:?}", wanted.retention),
            format!("{:?}", found.retention),
        ),
        (
            "storage",
            format!("{:?}", wanted.storage),
            format!("{:?}", found.storage),
        ),
        (
            "discard",
            format!("{:?}", wanted.discard),
            format!("{:?}", found.discard),
        ),
        (
            "replicas",
            wanted.num_replicas.to_string(),
            found.num_replicas.to_string(),
        ),
        (
            "deny_delete",
            wanted.deny_delete.to_string(),
            found.deny_delete.to_string(),
        ),
        (
            "deny_purge",
            wanted.deny_purge.to_string(),
            found.deny_purge.to_string(),
        ),
        (
            "max_msgs_per_subject",
            wanted.max_messages_per_subject.to_string(),
            found.max_messages_per_subject.to_string(),
        ),
    ];
    for (setting, wanted_value, found_value) in rows {
        if !wanted_value.eq_ignore_ascii_case(&found_value) {
            let message = format!(
                "stream {} exists with {setting} \"{found_value}\", and \"{wanted_value}\" is needed: \
                 remove or change it, nothing in it is the only copy",
                wanted.name
            );
            return Err(Error::new(Class::FailedPrecondition, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_would_lose_work_is_refused_by_name() {
        let wanted = declared(1).remove(0);
        let mut found = wanted.clone();
        found.max_bytes = 1;
        assert!(compare(&wanted, &found).is_ok());
        found.retention = RetentionPolicy::WorkQueue;
        let error = compare(&wanted, &found).unwrap_err();
        assert!(
            error.message().contains("TOGI_JOBS") && error.message().contains("retention"),
            "{error}"
        );
    }
}
