//! Jobs from submission to their end.

use futures::StreamExt as _;
use togi_runtime::bus::reader::Start;
use togi_runtime::jobs::{Kind, State};
use togi_runtime::worker::Outcome;
use togi_runtime::{Class, Error, Fence, jobs};
use togi_testing::{Rig, wait_until};

use crate::workers::{Scripted, all, dead, next, reach, submit, unanswered, work, work_on};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_claimed_done_and_acknowledged() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let mut said = context.bus.events(&[], Start::New).await.unwrap();
    let id = submit(&context, "a").await;
    assert_eq!(all(&context).get(&id).await.unwrap().queue_position, 0);
    let second = submit(&context, "b").await;
    assert_eq!(all(&context).get(&second).await.unwrap().queue_position, 1);
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    let states: Vec<State> = all(&context)
        .watch(&second)
        .await
        .unwrap()
        .map(|job| job.state)
        .collect()
        .await;
    assert_eq!(
        (states.first(), states.last()),
        (Some(&State::Queued), Some(&State::Succeeded))
    );
    let job = reach(&context, &id, State::Succeeded).await;
    assert_eq!((job.result.as_str(), job.attempts), ("made by one", 0));
    assert!(job.fence > Fence::default() && job.start_time.is_some() && job.end_time.is_some());
    let request: serde_json::Value = serde_json::from_slice(&handler.claim(0).request).unwrap();
    assert_eq!(request["base"], "demo");
    wait_until("both messages are acknowledged", async || {
        unanswered(&rig).await == 0
    })
    .await;
    let mut names = Vec::new();
    while names
        .iter()
        .filter(|name| **name == "job.succeeded")
        .count()
        < 2
    {
        names.push(next(&mut said).await.event.kind().name());
    }
    assert_eq!(
        names.iter().filter(|name| **name == "job.queued").count(),
        2,
        "{names:?}"
    );
    assert_eq!(
        names.iter().filter(|name| **name == "job.started").count(),
        2,
        "{names:?}"
    );
    let listed = all(&context).list(Kind::Train).await.unwrap();
    assert_eq!(
        listed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(),
        [second.as_str(), id.as_str()]
    );
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_for_one_job_stops_after_it_and_leaves_the_next() {
    let rig = Rig::start();
    let (one, two) = (
        rig.context("one").await.unwrap(),
        rig.context("two").await.unwrap(),
    );
    let first = submit(&one, "a").await;
    let second = submit(&one, "b").await;
    let handler = Scripted::succeeding();
    work_on(&one, &handler, 1).await.unwrap().unwrap();
    assert_eq!(handler.calls(), 1);
    let job = all(&two).get(&first).await.unwrap();
    assert_eq!(job.state, State::Succeeded);
    let left = all(&two).get(&second).await.unwrap();
    assert_eq!((left.state, left.attempts), (State::Queued, 0));
    work_on(&two, &handler, 1).await.unwrap().unwrap();
    let job = all(&rig.context("three").await.unwrap()).get(&second).await;
    assert_eq!(job.unwrap().result, "made by two");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_is_the_requests_fault_is_final_at_once() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let handler =
        Scripted::new(|_, _| async { Outcome::Failed(Error::invalid("base", "is unknown")) });
    let id = submit(&context, "a").await;
    let worker = work(&context, &handler);
    let job = reach(&context, &id, State::Failed).await;
    assert_eq!(
        (
            job.attempts,
            handler.calls(),
            job.failure.unwrap().field.as_deref()
        ),
        (1, 1, Some("base"))
    );
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_is_cancelled_at_once_and_never_done() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let (id, other) = (submit(&context, "a").await, submit(&context, "b").await);
    let job = all(&context).cancel(&id).await.unwrap();
    assert_eq!(job.state, State::Cancelled);
    assert_eq!(
        all(&context).cancel(&id).await.unwrap().state,
        State::Cancelled
    );
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    reach(&context, &other, State::Succeeded).await;
    wait_until("both messages are acknowledged", async || {
        unanswered(&rig).await == 0
    })
    .await;
    assert_eq!(handler.calls(), 1);
    let error = all(&context).cancel(&other).await.unwrap_err();
    assert_eq!(error.class(), Class::FailedPrecondition);
    let nobody = "nobody".parse().unwrap();
    assert_eq!(
        all(&context).cancel(&nobody).await.unwrap_err().class(),
        Class::NotFound
    );
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_hears_of_its_cancellation() {
    let rig = Rig::start();
    let (context, client) = (
        rig.context("one").await.unwrap(),
        rig.context("client").await.unwrap(),
    );
    let handler = Scripted::new(|claim, _| async move {
        claim.lease.cancelled().await;
        Outcome::Cancelled
    });
    let id = submit(&client, "a").await;
    let worker = work(&context, &handler);
    reach(&client, &id, State::Running).await;
    assert!(all(&client).cancel(&id).await.unwrap().cancel_requested);
    let job = reach(&client, &id, State::Cancelled).await;
    assert_eq!(job.attempts, 0);
    assert!(job.cancel_requested, "by somebody's wish, not withdrawn");
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_nobody_needs_ends_with_the_reason_and_is_no_dead_letter() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let id = submit(&context, "a").await;
    let handler = Scripted::new(|_, _| async {
        Outcome::Withdrawn(Error::new(Class::Aborted, "another one is better"))
    });
    let worker = work(&context, &handler);
    let job = reach(&context, &id, State::Cancelled).await;
    let error = job.failure.unwrap();
    assert_eq!(
        (error.class, error.message.as_str()),
        (Class::Aborted, "another one is better")
    );
    assert!(!job.cancel_requested);
    assert!(dead(&rig).await.is_empty());
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_handed_back_has_lost_no_attempt() {
    let rig = Rig::start();
    let (first, second) = (
        rig.context("first").await.unwrap(),
        rig.context("second").await.unwrap(),
    );
    let patient = Scripted::new(|claim, _| async move {
        claim.stopper.stopped().await;
        Outcome::HandBack
    });
    let id = submit(&first, "a").await;
    let worker = work(&first, &patient);
    reach(&first, &id, State::Running).await;
    first.stopper.stop();
    worker.await.unwrap().unwrap();
    let job = all(&second).get(&id).await.unwrap();
    assert_eq!(
        (job.state, job.attempts, job.worker.as_str()),
        (State::Queued, 0, "")
    );
    let quick = Scripted::succeeding();
    let worker = work(&second, &quick);
    let job = reach(&second, &id, State::Succeeded).await;
    assert_eq!((job.attempts, job.result.as_str()), (0, "made by second"));
    assert!(quick.claim(0).lease.fence() > patient.claim(0).lease.fence());
    second.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job_for_ever_and_another_body_is_refused() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let id = submit(&context, "key").await;
    assert_eq!(submit(&context, "key").await, id);
    let other = serde_json::json!({ "base": "other" });
    let error = all(&context)
        .submit(Kind::Train, &id, &other)
        .await
        .unwrap_err();
    assert_eq!(
        (error.class(), error.field()),
        (Class::AlreadyExists, Some("idempotency_key"))
    );
    assert_ne!(jobs::job_id(Kind::Prepare, "key").unwrap(), id);
    assert_ne!(
        jobs::job_id(Kind::Train, "").unwrap(),
        jobs::job_id(Kind::Train, "").unwrap()
    );
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    reach(&context, &id, State::Succeeded).await;
    let again = all(&context)
        .submit(
            Kind::Train,
            &id,
            &serde_json::json!({ "idempotencyKey": "key", "base": "demo" }),
        )
        .await
        .unwrap();
    assert_eq!((again.state, handler.calls()), (State::Succeeded, 1));
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}
