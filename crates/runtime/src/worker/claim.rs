//! Decides whether a message means work for this worker: facts in, decision out, then one
//! compare-and-set.

use jiff::Timestamp;
use togi_common::JobId;

use crate::error::{Class, Error, Result};
use crate::fence::Fence;
use crate::job::{Failure, Job, State};
use crate::jobs::MAX_ATTEMPTS;
use crate::jobs::record::{Envelope, Record};
use crate::layout;
use crate::worker::delivery::{Bare, Delivery, nak};
use crate::worker::handler::Handler;
use crate::worker::slot::Slot;

/// The result of claiming a message's job.
pub(super) enum Decision {
    /// This worker has claimed the job.
    Work(Box<Job>),
    /// The message is answered and needs no work.
    Settled,
}

/// The decision from the record and the message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It has ended: acknowledge.
    Ended,
    /// Its end was requested before it began.
    Cancel,
    /// Claim it; `vanished` if its last worker was lost.
    Claim { vanished: bool },
    /// Another message stands for this job: acknowledge this one.
    Duplicate,
    /// Its holder may be alive; look again later.
    Later,
}

/// `other_there`: whether the record names another message, which is still in the stream.
fn judge(record: &Record, place: u64, delivered: i64, other_there: bool) -> Verdict {
    let job = &record.job;
    let own = record.message == place || record.message == 0;
    match job.state {
        state if state.is_final() => Verdict::Ended,
        // The other message is delivered too, and this one would only keep a second worker waiting.
        _ if !own && other_there => Verdict::Duplicate,
        State::Running if own => Verdict::Claim { vanished: true },
        // The holder's message is gone with its stream, so the holder cannot confirm its lease and
        // has stopped after one lease time.
        State::Running if delivered < 2 => Verdict::Later,
        State::Running => Verdict::Claim { vanished: true },
        _ if job.cancel_requested => Verdict::Cancel,
        _ => Verdict::Claim { vanished: false },
    }
}

impl<H: Handler> Slot<H> {
    /// Claims the job of a message, or settles the message. `bare` is the request of a bare
    /// message.
    pub(super) async fn claim(
        &self,
        delivery: &Delivery,
        id: &JobId,
        bare: Option<Bare>,
    ) -> Result<Decision> {
        if let Some(bare) = bare {
            match self.register(delivery, id, bare).await {
                Ok(()) => {}
                Err(error) if error.class() == Class::AlreadyExists => {
                    self.bury::<()>(delivery, &error).await?;
                    return Ok(Decision::Settled);
                }
                Err(error) => return Err(error),
            }
        }
        loop {
            let Some((record, revision)) = self.jobs.record(id).await? else {
                if self.remake(delivery, id).await? {
                    continue;
                }
                return Ok(Decision::Settled);
            };
            let bus = self.jobs.bus();
            let another = record.message != delivery.place;
            let other_there = another && self.jobs.names_job(record.message, id).await?;
            let vanished = match judge(&record, delivery.place, delivery.delivered, other_there) {
                Verdict::Ended => {
                    // The worker may have died between record and event. A repeated event counts
                    // once.
                    self.jobs.say_outcome(&record.job).await?;
                    bus.answer(&delivery.reply, "+ACK").await?;
                    return Ok(Decision::Settled);
                }
                Verdict::Duplicate => {
                    bus.answer(&delivery.reply, "+ACK").await?;
                    return Ok(Decision::Settled);
                }
                Verdict::Later => {
                    bus.answer(&delivery.reply, &nak(bus.config().ack_wait()))
                        .await?;
                    return Ok(Decision::Settled);
                }
                Verdict::Cancel => {
                    let ended = self.jobs.finish(record.job, State::Cancelled).await?;
                    self.jobs.settle(&ended).await?;
                    continue;
                }
                Verdict::Claim { vanished } => vanished,
            };
            // The store decides: a worker may have died, or the bucket been lost, after the end was
            // written.
            if let Some(ended) = self.jobs.final_record(id).await? {
                self.jobs.settle(&ended).await?;
                continue;
            }
            match self.take(delivery, id, record, revision, vanished).await {
                Ok(Some(job)) => {
                    return Ok(Decision::Work(Box::new(job)));
                }
                Ok(None) => {}
                Err(error) if error.class() == Class::Aborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates the job of a bare message. At a redelivery its names may mean something else; their
    /// first meaning counts.
    async fn register(&self, delivery: &Delivery, id: &JobId, bare: Bare) -> Result<()> {
        let mut came_before = bare.is_key;
        if let Some((record, _)) = self.jobs.record(id).await? {
            came_before |= record.message == delivery.place;
        }
        let envelope = match self.jobs.keep_request(H::KIND, id, bare.request).await {
            Err(error) if error.class() == Class::AlreadyExists && came_before => {
                let key = layout::job_request(id);
                self.jobs.store().get_json(&key).await?
            }
            kept => kept?,
        };
        self.jobs.restore(id, &envelope, delivery.place).await
    }

    /// Restores a job without a record from the store, or buries the message of an unknown job.
    /// Returns whether there is a record now.
    async fn remake(&self, delivery: &Delivery, id: &JobId) -> Result<bool> {
        let error = match self
            .jobs
            .store()
            .get_json::<Envelope>(&layout::job_request(id))
            .await
        {
            Ok(envelope) => {
                self.jobs.restore(id, &envelope, delivery.place).await?;
                return Ok(true);
            }
            Err(error) if error.class() == Class::NotFound => error,
            Err(error) => return Err(error),
        };
        let error = Error::not_found(format!("there is no job \"{id}\"")).with_source(error);
        self.bury::<()>(delivery, &error).await?;
        Ok(false)
    }

    /// Writes the claim. `None` if the loss of its last worker has failed the job.
    async fn take(
        &self,
        delivery: &Delivery,
        id: &JobId,
        record: Record,
        revision: u64,
        vanished: bool,
    ) -> Result<Option<Job>> {
        let bucket = self.jobs.bus().jobs();
        let Record { mut job, .. } = record;
        if vanished {
            // A job that kills its workers must not do so without limit.
            job.attempts += 1;
            let message = format!("worker {} was lost while it held the job", job.worker);
            job.failure = Some(Failure::from(&Error::new(Class::Aborted, message)));
            if job.attempts >= MAX_ATTEMPTS {
                let ended = self.jobs.finish(job, State::Failed).await?;
                self.jobs.settle(&ended).await?;
                return Ok(None);
            }
        }
        job.state = State::Running;
        job.wait = None;
        job.worker.clone_from(&self.context.instance);
        job.start_time = job.start_time.or_else(|| Some(Timestamp::now()));
        let mut record = Record {
            job,
            message: delivery.place,
        };
        let claimed = bucket
            .update(id.as_str(), record.to_bytes()?, revision)
            .await?;
        // The fence is the revision of the claiming write, known only after it.
        record.job.fence = Fence(claimed);
        bucket
            .update(id.as_str(), record.to_bytes()?, claimed)
            .await?;
        Ok(Some(record.job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Kind;

    fn record(state: State, message: u64, cancel_requested: bool) -> Record {
        let job = Job {
            state,
            cancel_requested,
            ..Job::queued("j".parse().unwrap(), Kind::Train)
        };
        Record { job, message }
    }

    #[test]
    fn what_a_message_means() {
        use State::{Cancelled, Queued, Running, Succeeded};
        use Verdict::{Cancel, Claim, Duplicate, Ended, Later};
        let fresh = Claim { vanished: false };
        let after = Claim { vanished: true };
        // state, the record's message, cancel requested, delivered, other message there, verdict
        // for message 5
        let table = [
            (Succeeded, 5, false, 1, false, Ended),
            (Cancelled, 4, true, 1, true, Ended),
            (Queued, 5, false, 1, false, fresh),
            (Queued, 0, false, 1, false, Claim { vanished: false }),
            (Queued, 5, true, 3, false, Cancel),
            (Queued, 4, false, 1, true, Duplicate),
            (Queued, 4, false, 1, false, Claim { vanished: false }),
            (Running, 5, false, 2, false, after),
            (Running, 4, false, 1, true, Duplicate),
            (Running, 4, false, 1, false, Later),
            (Running, 4, false, 2, false, Claim { vanished: true }),
        ];
        for (state, message, cancel, delivered, there, verdict) in table {
            let record = record(state, message, cancel);
            assert_eq!(
                judge(&record, 5, delivered, there),
                verdict,
                "{record:?} {delivered} {there}"
            );
        }
    }
}
