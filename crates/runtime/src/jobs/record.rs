//! The two written forms of a job: its request's envelope in the store and its record in the
//! bucket.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use togi_proto::job::v1::{Job, JobState};

use crate::error::{Error, Result};
use crate::events::kind_from_name;
use crate::layout::JobId;

/// `jobs/<job>/request.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// `prepare` or `train`.
    pub(crate) kind: String,
    /// What was asked: proto3 JSON.
    pub(crate) request: Value,
    pub(crate) create_time: jiff::Timestamp,
    /// Trace context of the one who asked.
    pub(crate) traceparent: String,
}

impl Envelope {
    /// Returns the record of a job that nobody has begun.
    pub(crate) fn to_job(&self, id: &JobId) -> Result<Job> {
        let kind = kind_from_name(&self.kind).ok_or_else(|| {
            Error::data_loss(format!("job {id} has the unknown kind \"{}\"", self.kind))
        })?;
        let mut job = Job {
            id: id.to_string(),
            create_time: Some(pbjson_types::Timestamp {
                seconds: self.create_time.as_second(),
                nanos: self.create_time.subsec_nanosecond(),
            }),
            traceparent: self.traceparent.clone(),
            ..Job::default()
        };
        job.set_kind(kind);
        job.set_state(JobState::Queued);
        Ok(job)
    }
}

/// A value of the bucket: the job's proto3 JSON, and beside its fields the place of its message in
/// the stream, by which a worker tells its own message, come again, from a second one for the same
/// job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) job: Job,
    pub(crate) message: u64,
}

const MESSAGE: &str = "message";

impl Record {
    pub(crate) fn to_bytes(&self) -> Result<Bytes> {
        let mut value = serde_json::to_value(&self.job)?;
        if let Value::Object(fields) = &mut value {
            fields.insert(MESSAGE.to_owned(), Value::from(self.message));
        }
        Ok(serde_json::to_vec(&value)?.into())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut value: Value = serde_json::from_slice(bytes)?;
        let fields = value.as_object_mut();
        let message = fields
            .and_then(|fields| fields.remove(MESSAGE))
            .and_then(|place| place.as_u64());
        Ok(Self {
            job: serde_json::from_value(value)?,
            message: message.unwrap_or_default(),
        })
    }
}

/// Returns whether a job in this state has ended.
#[must_use]
pub fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Succeeded | JobState::Failed | JobState::Cancelled
    )
}

/// Returns the time as protobuf writes it.
pub(crate) fn now() -> pbjson_types::Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    pbjson_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_bytes_and_reads_as_a_job_with_its_message() {
        let mut job = Job {
            id: "j".into(),
            epoch: 1 << 60,
            create_time: Some(now()),
            ..Job::default()
        };
        job.set_state(JobState::Running);
        let record = Record { job, message: 7 };
        let bytes = record.to_bytes().unwrap();
        assert_eq!(Record::from_bytes(&bytes).unwrap(), record);
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            (value["state"].as_str(), value["message"].as_u64()),
            (Some("JOB_STATE_RUNNING"), Some(7))
        );
    }
}
