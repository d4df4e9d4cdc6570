//! Handlers for tests: they act by script and record their claims. Helpers that ask the bus.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use async_trait::async_trait;
use futures::StreamExt as _;
use togi_runtime::bus::reader::{EventStream, Received};
use togi_runtime::jobs::{Job, Kind, State};
use togi_runtime::worker::{self, Claim, Handler, Outcome};
use togi_runtime::{Context, JobId, Jobs, Result, events, jobs};
use togi_testing::{Rig, wait_until};
use tokio::task::JoinHandle;

type Behaviour = dyn Fn(Claim, u32) -> futures::future::BoxFuture<'static, Outcome> + Send + Sync;

/// A handler of train jobs that behaves as its test wants.
pub(crate) struct Scripted {
    behaviour: Box<Behaviour>,
    pub(crate) calls: AtomicU32,
    pub(crate) claims: Mutex<Vec<Claim>>,
}

impl Scripted {
    /// `behaviour` gets the claim and how many calls there were before.
    pub(crate) fn new<F>(behaviour: impl Fn(Claim, u32) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let behaviour = Box::new(
            move |claim, call| -> futures::future::BoxFuture<'static, Outcome> {
                Box::pin(behaviour(claim, call))
            },
        );
        Arc::new(Self {
            behaviour,
            calls: AtomicU32::new(0),
            claims: Mutex::new(Vec::new()),
        })
    }

    /// Succeeds at once.
    pub(crate) fn succeeding() -> Arc<Self> {
        Self::new(|claim, _| async move {
            Outcome::Succeeded {
                result: format!("made by {}", claim.job.worker),
            }
        })
    }

    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn claim(&self, n: usize) -> Claim {
        self.claims.lock().unwrap()[n].clone()
    }
}

#[async_trait]
impl Handler for Scripted {
    const KIND: Kind = Kind::Train;

    async fn handle(&self, claim: Claim) -> Outcome {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        self.claims.lock().unwrap().push(claim.clone());
        (self.behaviour)(claim, call).await
    }
}

/// Starts a worker with one slot.
pub(crate) fn work(context: &Context, handler: &Arc<Scripted>) -> JoinHandle<Result<()>> {
    work_on(context, handler, 0)
}

/// Starts a worker that stops its process after a number of jobs.
pub(crate) fn work_on(
    context: &Context,
    handler: &Arc<Scripted>,
    jobs: u64,
) -> JoinHandle<Result<()>> {
    let limits = worker::Limits { slots: 1, jobs };
    tokio::spawn(worker::serve(context.clone(), handler.clone(), limits))
}

/// Submits a train job.
pub(crate) async fn submit(context: &Context, key: &str) -> JobId {
    let id = jobs::job_id(Kind::Train, key).unwrap();
    let request = serde_json::json!({ "base": "demo", "idempotencyKey": key });
    let job = all(context)
        .submit(Kind::Train, &id, &request)
        .await
        .unwrap();
    assert_eq!(job.id, id);
    id
}

pub(crate) fn all(context: &Context) -> Jobs {
    Jobs::new(&context.bus, &context.store)
}

/// Waits until a job is in a state, and returns it.
pub(crate) async fn reach(context: &Context, id: &JobId, state: State) -> Job {
    let jobs = all(context);
    let what = format!("job {id} is {state:?}");
    wait_until(&what, async || {
        jobs.get(id).await.is_ok_and(|job| job.state == state)
    })
    .await;
    jobs.get(id).await.unwrap()
}

/// Returns the next event, which comes within 20 seconds.
pub(crate) async fn next(stream: &mut EventStream) -> Received {
    tokio::time::timeout(Duration::from_secs(20), stream.next())
        .await
        .expect("an event in time")
        .unwrap()
}

/// Returns the dead letters.
pub(crate) async fn dead(rig: &Rig) -> Vec<serde_json::Value> {
    let js = jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    let mut stream = js.get_stream(events::DEAD_STREAM).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut letters = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        letters.push(serde_json::from_slice(&message.payload).unwrap());
    }
    letters
}

/// Returns the number of unanswered messages of the train consumer.
pub(crate) async fn unanswered(rig: &Rig) -> u64 {
    let js = jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    let stream = js.get_stream(events::JOBS_STREAM).await.unwrap();
    let info = stream.consumer_info("togi-train").await.unwrap();
    info.num_pending + info.num_ack_pending as u64
}
