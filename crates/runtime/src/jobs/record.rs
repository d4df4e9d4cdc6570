//! The written forms of a job: the envelope of its request in the store, and its record, which is
//! proto3 JSON in the store and the bucket and a protobuf message to clients.

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use togi_common::JobId;
use togi_proto::job::v1 as proto;

use crate::error::{Class, Error, Result};
use crate::fence::Fence;
use crate::job::{Failure, Job, Kind, State, Wait};

/// `jobs/<job>/request.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// `prepare` or `train`.
    pub(crate) kind: String,
    /// The request as JSON.
    pub(crate) request: Value,
    pub(crate) create_time: Timestamp,
    /// Trace context of the caller.
    pub(crate) traceparent: String,
}

impl Envelope {
    /// Returns the record of the job before its first claim.
    pub(crate) fn to_job(&self, id: &JobId) -> Result<Job> {
        let kind = Kind::from_name(&self.kind).ok_or_else(|| {
            Error::data_loss(format!("job {id} has the unknown kind \"{}\"", self.kind))
        })?;
        Ok(Job {
            create_time: self.create_time,
            traceparent: self.traceparent.clone(),
            ..Job::queued(id.clone(), kind)
        })
    }
}

/// A value of the bucket: the job's proto3 JSON with one more field, the sequence number of its
/// message in the stream. It distinguishes a redelivery of that message from a second message for
/// the same job.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let damaged =
            |error| Error::data_loss("a job's record cannot be parsed").with_source(error);
        let mut value: Value = serde_json::from_slice(bytes).map_err(damaged)?;
        let fields = value.as_object_mut();
        let message = fields
            .and_then(|fields| fields.remove(MESSAGE))
            .and_then(|message| message.as_u64());
        Ok(Self {
            job: serde_json::from_value(value).map_err(damaged)?,
            message: message.unwrap_or_default(),
        })
    }
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        proto::Job::from(self.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Job {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Job::try_from(proto::Job::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl From<Kind> for proto::JobKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Prepare => Self::Prepare,
            Kind::Train => Self::Train,
        }
    }
}

impl From<State> for proto::JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

impl State {
    /// Returns the state of a message; `None` if it is not set.
    #[must_use]
    pub fn from_proto(state: proto::JobState) -> Option<Self> {
        match state {
            proto::JobState::Unspecified => None,
            proto::JobState::Queued => Some(Self::Queued),
            proto::JobState::Running => Some(Self::Running),
            proto::JobState::Succeeded => Some(Self::Succeeded),
            proto::JobState::Failed => Some(Self::Failed),
            proto::JobState::Cancelled => Some(Self::Cancelled),
        }
    }
}

impl From<Failure> for proto::JobError {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.class.name().to_owned(),
            message: failure.message,
            field: failure.field.unwrap_or_default(),
        }
    }
}

impl From<proto::JobError> for Failure {
    fn from(error: proto::JobError) -> Self {
        Self {
            class: Class::from_name(&error.code).unwrap_or(Class::Internal),
            message: error.message,
            field: Some(error.field).filter(|field| !field.is_empty()),
        }
    }
}

impl From<Job> for proto::Job {
    fn from(job: Job) -> Self {
        Self {
            id: job.id.into(),
            kind: proto::JobKind::from(job.kind).into(),
            state: proto::JobState::from(job.state).into(),
            attempts: job.attempts,
            epoch: job.fence.0,
            queue_position: job.queue_position,
            create_time: Some(to_proto_time(job.create_time)),
            start_time: job.start_time.map(to_proto_time),
            end_time: job.end_time.map(to_proto_time),
            error: job.failure.map(proto::JobError::from),
            result: job.result,
            cancel_requested: job.cancel_requested,
            worker: job.worker,
            traceparent: job.traceparent,
            refusal: job.refusal,
            wait: job.wait.map(|wait| proto::JobWait {
                part: wait.part,
                reason: wait.reason,
                since: Some(to_proto_time(wait.since)),
            }),
        }
    }
}

impl TryFrom<proto::Job> for Job {
    type Error = Error;

    /// # Errors
    /// `DataLoss` if the id, the kind, the state or a time is not one that Togi writes.
    fn try_from(job: proto::Job) -> Result<Self> {
        let damaged =
            |what: &str| Error::data_loss(format!("the record of job {:?} has no {what}", job.id));
        let kind = match job.kind() {
            proto::JobKind::Prepare => Kind::Prepare,
            proto::JobKind::Train => Kind::Train,
            proto::JobKind::Unspecified => return Err(damaged("kind")),
        };
        let state = State::from_proto(job.state()).ok_or_else(|| damaged("state"))?;
        let time = |time: Option<pbjson_types::Timestamp>| {
            time.map(|time| Timestamp::new(time.seconds, time.nanos))
                .transpose()
                .map_err(|error| damaged("valid time").with_source(error))
        };
        let wait = match job.wait {
            Some(wait) => Some(Wait {
                part: wait.part,
                reason: wait.reason,
                since: time(wait.since)?.unwrap_or_default(),
            }),
            None => None,
        };
        Ok(Self {
            kind,
            state,
            wait,
            attempts: job.attempts,
            fence: Fence(job.epoch),
            queue_position: job.queue_position,
            create_time: time(job.create_time)?.ok_or_else(|| damaged("create time"))?,
            start_time: time(job.start_time)?,
            end_time: time(job.end_time)?,
            id: job
                .id
                .parse()
                .map_err(|error| damaged("valid id").with_source(error))?,
            failure: job.error.map(Failure::from),
            result: job.result,
            cancel_requested: job.cancel_requested,
            worker: job.worker,
            traceparent: job.traceparent,
            refusal: job.refusal,
        })
    }
}

fn to_proto_time(time: Timestamp) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

#[cfg(test)]
mod tests {
    use togi_common::canonical;

    use super::*;

    /// As the first version of this file wrote it, from a protobuf message.
    const STORED: &str = r#"{"attempts":2,"cancelRequested":true,"createTime":"2026-01-02T03:04:05.000000006+00:00","endTime":"2026-01-02T03:04:07+00:00","epoch":"1152921504606846976","error":{"code":"NOT_FOUND","field":"recipe.base","message":"there is no base"},"id":"j","kind":"JOB_KIND_TRAIN","queuePosition":3,"refusal":"worse","result":"g","startTime":"2026-01-02T03:04:06.500+00:00","state":"JOB_STATE_FAILED","traceparent":"00-1","worker":"w"}"#;
    /// A job that waits: fields without a value are left out.
    const STORED_QUEUED: &str = r#"{"createTime":"2026-01-02T03:04:05.000000006+00:00","id":"j","kind":"JOB_KIND_PREPARE","state":"JOB_STATE_QUEUED"}"#;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn ended() -> Job {
        Job {
            state: State::Failed,
            attempts: 2,
            fence: Fence(1 << 60),
            queue_position: 3,
            create_time: at("2026-01-02T03:04:05.000000006Z"),
            start_time: Some(at("2026-01-02T03:04:06.5Z")),
            end_time: Some(at("2026-01-02T03:04:07Z")),
            failure: Some(Failure {
                class: Class::NotFound,
                message: "there is no base".into(),
                field: Some("recipe.base".into()),
            }),
            result: "g".into(),
            cancel_requested: true,
            worker: "w".into(),
            traceparent: "00-1".into(),
            refusal: "worse".into(),
            wait: None,
            ..Job::queued("j".parse().unwrap(), Kind::Train)
        }
    }

    #[test]
    fn a_stored_end_keeps_its_bytes_and_is_read_back() {
        let queued = Job {
            create_time: ended().create_time,
            ..Job::queued(ended().id, Kind::Prepare)
        };
        for (job, stored) in [(ended(), STORED), (queued, STORED_QUEUED)] {
            let written = canonical::json(&job).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), stored);
            assert_eq!(serde_json::from_str::<Job>(stored).unwrap(), job);
        }
    }

    #[test]
    fn a_record_is_the_job_with_its_message() {
        let record = Record {
            job: ended(),
            message: 7,
        };
        let bytes = record.to_bytes().unwrap();
        assert_eq!(Record::from_bytes(&bytes).unwrap(), record);
        let mut value: Value = serde_json::from_slice(&bytes).unwrap();
        let message = value.as_object_mut().unwrap().remove(MESSAGE);
        assert_eq!(message, Some(Value::from(7)));
        assert_eq!(value, serde_json::from_str::<Value>(STORED).unwrap());
    }

    #[test]
    fn a_record_that_was_never_written_is_damaged() {
        for (written, other) in [
            ("JOB_KIND_TRAIN", "JOB_KIND_UNSPECIFIED"),
            ("JOB_STATE_FAILED", "JOB_STATE_UNSPECIFIED"),
            (r#""id":"j""#, r#""id":"J""#),
        ] {
            let error = Record::from_bytes(STORED.replace(written, other).as_bytes()).unwrap_err();
            assert_eq!(error.class(), Class::DataLoss, "{other}");
        }
        let cut = Record::from_bytes(&STORED.as_bytes()[..20]).unwrap_err();
        assert_eq!(cut.class(), Class::DataLoss);
    }
}
