//! A job's record, in our own types. `record.rs` has its written forms.

use jiff::Timestamp;
use togi_common::JobId;

use crate::error::{Class, Error};
use crate::fence::Fence;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Turns records into a data set.
    Prepare,
    /// Trains an adapter.
    Train,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Prepare, Self::Train];

    /// Returns the name in subjects, events, consumers and stored requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
        }
    }

    /// Returns the kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Accepted, and waiting for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Its result is committed in the store.
    Succeeded,
    /// Ended with a failure.
    Failed,
    /// Ended by request, or because its result is no longer needed.
    Cancelled,
}

impl State {
    /// Returns whether a job in this state has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why an attempt failed, or why a job was withdrawn: an error without its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Decides whether another attempt may help.
    pub class: Class,
    /// A sentence that tells the user what to do.
    pub message: String,
    /// The request's field at fault, for example `recipe.lora.rank`.
    pub field: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            class: error.class(),
            message: error.message().to_owned(),
            field: error.field().map(str::to_owned),
        }
    }
}

/// A part that a job waits for, because it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The part, for example "data-prep".
    pub part: String,
    /// Why it is not there, in a sentence.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

impl Wait {
    /// Returns a wait that begins now.
    pub fn new(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            part: part.into(),
            reason: reason.into(),
            since: Timestamp::now(),
        }
    }
}

/// A job's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The id.
    pub id: JobId,
    /// What it does.
    pub kind: Kind,
    /// Its state.
    pub state: State,
    /// Failed attempts so far; a hand-back does not count.
    pub attempts: u32,
    /// The fence of the newest claim.
    pub fence: Fence,
    /// Jobs of the same kind that start before this one; 0 unless queued.
    pub queue_position: u32,
    /// When it was accepted.
    pub create_time: Timestamp,
    /// When its first worker claimed it.
    pub start_time: Option<Timestamp>,
    /// When it ended.
    pub end_time: Option<Timestamp>,
    /// Set when it failed, after an attempt that will be repeated, and when it was withdrawn.
    pub failure: Option<Failure>,
    /// A data set's digest or an adapter's generation; empty until it succeeded.
    pub result: String,
    /// Its end was requested.
    pub cancel_requested: bool,
    /// The worker that holds it; empty without one.
    pub worker: String,
    /// W3C trace context of the request that created it.
    pub traceparent: String,
    /// Why the gate refused its result; empty if it passed or has no gate.
    pub refusal: String,
    /// What it waits for; `None` while it works or has ended.
    pub wait: Option<Wait>,
}

impl Job {
    /// Returns a job that was accepted now and not yet claimed.
    #[must_use]
    pub fn queued(id: JobId, kind: Kind) -> Self {
        Self {
            id,
            kind,
            state: State::Queued,
            attempts: 0,
            fence: Fence::default(),
            queue_position: 0,
            create_time: Timestamp::now(),
            start_time: None,
            end_time: None,
            failure: None,
            result: String::new(),
            cancel_requested: false,
            worker: String::new(),
            traceparent: String::new(),
            refusal: String::new(),
            wait: None,
        }
    }
}
