//! Decides what a policy trains next, from the outcomes of its data set's revisions. They are in
//! the store, so that every replica decides the same, also after a restart.
//!
//! A job's key is the policy, its version and the revision: events that come twice, replicas that
//! see the same one, and restarts all make the same job. One of the policy's jobs at a time; then
//! the newest revision that was not tried.

use jiff::Timestamp;
use togi_runtime::jobs::{Job, Kind, State, job_id};
use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::{JobId, Jobs, Store};

use crate::dataset;
use crate::error::{Error, Result};
use crate::policies::policy::Policy;
use crate::request::{By, Origin};
use crate::submission::{Admission, Checked};

/// How often a revision's job may be withdrawn. Without a bound, a worker and an api that disagree
/// over what is newer would queue and withdraw for ever.
const MOST_WITHDRAWN: usize = 8;

/// Decides for policies.
#[derive(Clone)]
pub(crate) struct Retraining {
    store: Store,
    jobs: Jobs,
    admission: Admission,
}

/// The decision for a policy.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// The job that it queues, if any.
    pub next: Option<Next>,
    /// Revisions that it cannot train, and why.
    pub unfit: Vec<(u64, Error)>,
}

/// A job to be queued.
#[derive(Debug)]
pub(crate) struct Next {
    /// The job.
    pub job: JobId,
    /// The revision that it trains.
    pub revision: u64,
    /// What it is asked, checked.
    pub checked: Checked,
    /// Trace context of the revision's preparation.
    pub traceparent: String,
}

/// What has become of a revision under one version of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has no job, or only such as were withdrawn.
    Untried,
    /// Its job waits or runs.
    Waiting,
    /// Its job has succeeded, and its gate passed.
    Trained,
    /// Its job failed or was cancelled, or the gate refused its adapter.
    Refused,
}

/// A revision and what has become of it.
struct RevisionState {
    revision: u64,
    named: NameRevision,
    fate: Fate,
    /// Its job, or the one that it would have.
    job: JobId,
    /// Jobs of it that were withdrawn.
    withdrawn: usize,
}

impl Retraining {
    /// Returns a decider over these jobs.
    #[must_use]
    pub(crate) fn new(store: Store, jobs: Jobs, admission: Admission) -> Retraining {
        Retraining {
            store,
            jobs,
            admission,
        }
    }

    /// Decides what a policy does now.
    ///
    /// # Errors
    /// The store's, the bus's, and those of a check that may pass later.
    pub(crate) async fn round(&self, policy: &Policy, now: Timestamp) -> Result<Round> {
        let mut round = Round::default();
        let states = self.states(policy, now).await?;
        let fates: Vec<Fate> = states.iter().map(|state| state.fate).collect();
        for state in candidates(&fates).into_iter().map(|at| &states[at]) {
            match self.check(policy, state).await {
                Ok(checked) => {
                    round.next = Some(Next {
                        job: state.job.clone(),
                        revision: state.revision,
                        checked,
                        traceparent: state.named.traceparent.clone().unwrap_or_default(),
                    });
                    break;
                }
                Err(error) if error.class().retryable() => return Err(error),
                Err(error) => round.unfit.push((state.revision, error)),
            }
        }
        Ok(round)
    }

    /// Returns the newer revision that makes a job that has not begun superfluous.
    ///
    /// # Errors
    /// As [`Retraining::round`].
    pub(crate) async fn overtaken(&self, origin: &Origin, now: Timestamp) -> Result<Option<u64>> {
        if origin.by == By::Request {
            return Ok(None);
        }
        let policy = Policy::in_force(&self.store, &origin.policy).await?;
        let Some(policy) = policy.filter(|policy| policy.version == origin.version) else {
            // The jobs of a deleted or changed policy go on.
            return Ok(None);
        };
        let states = self.states(&policy, now).await?;
        let newer = states
            .iter()
            .filter(|state| state.revision > origin.revision);
        for state in newer {
            let comes = match state.fate {
                Fate::Waiting | Fate::Trained => true,
                Fate::Refused => false,
                Fate::Untried => match self.check(&policy, state).await {
                    Ok(_) => true,
                    Err(error) if error.class().retryable() => return Err(error),
                    Err(_) => false,
                },
            };
            if comes {
                return Ok(Some(state.revision));
            }
        }
        Ok(None)
    }

    /// Revisions whose time has come, newest first, down to one that was trained.
    async fn states(&self, policy: &Policy, now: Timestamp) -> Result<Vec<RevisionState>> {
        let name = &policy.body.dataset;
        let newest = dataset::newest(&self.store, name).await?;
        let newest = newest.map_or(0, |(newest, _)| newest);
        let mut time = policy.time(now)?;
        let mut states = Vec::new();
        for revision in (1..=newest).rev() {
            if time.is_over(revision) {
                break;
            }
            let Some(named) = dataset::revision(&self.store, name, revision).await? else {
                continue;
            };
            if !time.has_come(revision, &named) {
                continue;
            }
            let state = self.state(policy, revision, named).await?;
            let trained = state.fate == Fate::Trained;
            states.push(state);
            if trained {
                break;
            }
        }
        Ok(states)
    }

    /// Returns a revision's state: that of its first job that was not withdrawn.
    async fn state(
        &self,
        policy: &Policy,
        revision: u64,
        named: NameRevision,
    ) -> Result<RevisionState> {
        let (name, version) = (&policy.body.name, policy.version);
        let mut key = format!("policy/{name}/{version}/{revision}");
        let mut withdrawn = 0;
        loop {
            let job = job_id(Kind::Train, &key)?;
            let fate = match self.jobs.find(&job).await? {
                None => Fate::Untried,
                Some(found) if is_withdrawn(&found) => {
                    withdrawn += 1;
                    key = format!("policy/{name}/{version}/{revision}/{withdrawn}");
                    continue;
                }
                Some(found) => fate_of(&found),
            };
            return Ok(RevisionState {
                revision,
                named,
                fate,
                job,
                withdrawn,
            });
        }
    }

    async fn check(&self, policy: &Policy, state: &RevisionState) -> Result<Checked> {
        let by = if state.withdrawn < MOST_WITHDRAWN {
            By::Trigger
        } else {
            By::Request
        };
        let resolved = policy.resolve(state.named.dataset, state.revision, by);
        self.admission.check(&resolved).await
    }
}

/// Whether a job ended because it was not needed, and not by a cancellation.
fn is_withdrawn(job: &Job) -> bool {
    job.state == State::Cancelled && !job.cancel_requested
}

fn fate_of(job: &Job) -> Fate {
    match job.state {
        State::Succeeded if job.refusal.is_empty() => Fate::Trained,
        State::Succeeded | State::Failed | State::Cancelled => Fate::Refused,
        State::Queued | State::Running => Fate::Waiting,
    }
}

/// Indices of the revisions that may be tried now, in that order; `fates` has the newest first.
fn candidates(fates: &[Fate]) -> Vec<usize> {
    if fates.contains(&Fate::Waiting) {
        return Vec::new();
    }
    let until_trained = fates.iter().take_while(|fate| **fate != Fate::Trained);
    let untried = until_trained
        .enumerate()
        .filter(|(_, fate)| **fate == Fate::Untried);
    untried.map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued() -> Job {
        Job::queued("j".parse().unwrap(), Kind::Train)
    }

    #[test]
    fn the_newest_that_was_not_tried_is_next_and_one_at_a_time() {
        use Fate::{Refused, Trained, Untried, Waiting};
        let table: [(&[Fate], &[usize]); 8] = [
            (&[], &[]),
            (&[Untried], &[0]),
            (&[Untried, Untried, Untried], &[0, 1, 2]),
            (&[Untried, Untried, Waiting], &[]),
            (&[Refused, Untried, Untried, Trained], &[1, 2]),
            (&[Refused, Refused, Untried], &[2]),
            (&[Refused, Trained], &[]),
            (&[Untried, Trained, Untried], &[0]),
        ];
        for (fates, expected) in table {
            assert_eq!(candidates(fates), expected, "{fates:?}");
        }
    }

    #[test]
    fn a_job_that_somebody_ended_was_tried_and_one_that_was_withdrawn_was_not() {
        let mut job = Job {
            state: State::Cancelled,
            cancel_requested: true,
            ..queued()
        };
        assert!(!is_withdrawn(&job));
        assert_eq!(fate_of(&job), Fate::Refused);
        job.cancel_requested = false;
        assert!(is_withdrawn(&job));
    }

    #[test]
    fn what_a_gate_refused_was_tried_and_is_not_what_is_served() {
        let mut job = Job {
            state: State::Succeeded,
            ..queued()
        };
        assert_eq!(fate_of(&job), Fate::Trained);
        job.refusal = "the loss is above".to_owned();
        assert_eq!(fate_of(&job), Fate::Refused);
    }
}
