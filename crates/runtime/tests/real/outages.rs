//! Lost leases, a server that is killed, a stream folder that is wiped.

use togi_runtime::jobs::{Kind, State};
use togi_runtime::worker::Outcome;
use togi_runtime::{Bus, Class, Stopper, jobs, layout};
use togi_testing::{Rig, wait_until};

use crate::workers::{Scripted, all, reach, submit, work};

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_takes_over_and_the_first_worker_cannot_publish() {
    let rig = Rig::start();
    let first = rig.context("first").await.unwrap();
    let second = rig.context("second").await.unwrap();
    // Ends when its lease is lost, and then tries to publish all the same.
    let stubborn = Scripted::new(|claim, _| async move {
        claim.lease.lost().await;
        assert_eq!(
            claim.lease.check().await.unwrap_err().class(),
            Class::Aborted
        );
        Outcome::Succeeded {
            result: "made by the first, too late".into(),
        }
    });
    let id = submit(&first, "a").await;
    let worker = work(&first, &stubborn);
    reach(&second, &id, State::Running).await;
    wait_until("the handler works", async || {
        !stubborn.claims.lock().unwrap().is_empty()
    })
    .await;
    // Another worker has the job now, as after a network partition.
    let (record, revision) = {
        let entry = second.bus.jobs().get(id.as_str()).await.unwrap().unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&entry.value.unwrap()).unwrap();
        record["worker"] = "second".into();
        record["epoch"] = (entry.revision + 1).to_string().into();
        (serde_json::to_vec(&record).unwrap(), entry.revision)
    };
    second
        .bus
        .jobs()
        .update(id.as_str(), record, revision)
        .await
        .unwrap();
    wait_until("the first worker has noticed", async || {
        !stubborn.claim(0).lease.is_held()
    })
    .await;
    first.stopper.stop();
    worker.await.unwrap().unwrap();
    assert!(!second.store.exists(&layout::job_final(&id)).await.unwrap());
    let quick = Scripted::succeeding();
    let worker = work(&second, &quick);
    let job = reach(&second, &id, State::Succeeded).await;
    assert_eq!(job.result, "made by second");
    assert!(quick.claim(0).lease.fence() > stubborn.claim(0).lease.fence());
    second.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_vanishes_loses_its_job_to_another_and_it_counts() {
    let rig = Rig::start();
    let first = rig.context("first").await.unwrap();
    let second = rig.context("second").await.unwrap();
    let stuck = Scripted::new(|_, _| std::future::pending());
    let id = submit(&first, "a").await;
    let worker = work(&first, &stuck);
    reach(&second, &id, State::Running).await;
    // As by SIGKILL: its tasks are gone, and nothing confirms the lease.
    worker.abort();
    drop(worker);
    let quick = Scripted::succeeding();
    let worker = work(&second, &quick);
    let job = reach(&second, &id, State::Succeeded).await;
    assert_eq!(job.attempts, 1);
    second.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_forgives_earlier_failures() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let handler = Scripted::new(|claim, call| async move {
        if call == 3 {
            claim.lease.progressed().await.unwrap();
        }
        if call < 7 {
            return Outcome::Failed(togi_runtime::Error::unavailable("not yet"));
        }
        Outcome::Succeeded { result: "x".into() }
    });
    let id = submit(&context, "a").await;
    let worker = work(&context, &handler);
    let job = reach(&context, &id, State::Succeeded).await;
    assert_eq!((job.attempts, handler.calls()), (4, 8));
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wiping_jetstream_loses_no_job() {
    let mut rig = Rig::start();
    let before = rig.context("before").await.unwrap();
    let quick = Scripted::succeeding();
    let worker = work(&before, &quick);
    let done = submit(&before, "done").await;
    reach(&before, &done, State::Succeeded).await;
    before.stopper.stop();
    worker.await.unwrap().unwrap();
    let waiting = submit(&before, "waiting").await;
    let cancelled = submit(&before, "cancelled").await;
    all(&before).cancel(&cancelled).await.unwrap();
    let first_fence = quick.claim(0).lease.fence();
    rig.nats.kill();
    rig.nats.wipe();
    rig.nats.resume();
    let after = rig.context("after").await.unwrap();
    assert_eq!(
        all(&after).get(&done).await.unwrap().state,
        State::Succeeded
    );
    assert_eq!(
        all(&after).get(&waiting).await.unwrap().state,
        State::Queued
    );
    assert!(all(&after).list(Kind::Train).await.unwrap().is_empty());
    let made = all(&after).reconcile(Kind::Train).await.unwrap();
    assert_eq!(made.restored, 3);
    assert_eq!(
        all(&after).reconcile(Kind::Train).await.unwrap(),
        jobs::reconcile::Reconciled::default()
    );
    let handler = Scripted::succeeding();
    let worker = work(&after, &handler);
    reach(&after, &waiting, State::Succeeded).await;
    assert_eq!(handler.calls(), 1);
    assert!(
        handler.claim(0).lease.fence() > first_fence,
        "tokens rise even over a wiped bucket"
    );
    let states: Vec<State> = all(&after)
        .list(Kind::Train)
        .await
        .unwrap()
        .iter()
        .map(|job| job.state)
        .collect();
    assert_eq!(
        states,
        [State::Cancelled, State::Succeeded, State::Succeeded]
    );
    after.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_message_is_published_again() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let id = submit(&context, "a").await;
    let js = async_nats::jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    js.delete_stream("TOGI_JOBS").await.unwrap();
    let second = submit(&context, "b").await;
    assert_eq!(
        all(&context)
            .reconcile(Kind::Train)
            .await
            .unwrap()
            .published,
        1
    );
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    reach(&context, &id, State::Succeeded).await;
    reach(&context, &second, State::Succeeded).await;
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_comes_back_and_the_job_ends_well() {
    let mut rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let (go, wait) = tokio::sync::watch::channel(false);
    let handler = Scripted::new(move |claim, _| {
        let mut wait = wait.clone();
        async move {
            tokio::select! {
                () = claim.lease.lost() => Outcome::LeaseLost,
                _ = wait.wait_for(|go| *go) => Outcome::Succeeded { result: "x".into() },
            }
        }
    });
    let id = submit(&context, "a").await;
    let worker = work(&context, &handler);
    // Not only claimed: a claim that the kill cuts short is no lease.
    wait_until("the handler works", async || {
        !handler.claims.lock().unwrap().is_empty()
    })
    .await;
    rig.nats.kill();
    // Longer than the lease: the worker must stop without a request.
    wait_until("the lease is lost", async || {
        !handler.claim(0).lease.is_held()
    })
    .await;
    rig.nats.resume();
    go.send(true).unwrap();
    let job = reach(&context, &id, State::Succeeded).await;
    assert!(job.attempts <= 1, "{job:?}");
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn services_wait_for_a_server_that_is_not_there_yet_and_for_one_that_comes_back() {
    let mut rig = Rig::start();
    rig.nats.kill();
    let (config, stopper) = (rig.nats.config(), Stopper::new());
    let stopped = stopper.child();
    stopped.stop();
    let error = Bus::connect(&config, "stopped", &stopped)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Cancelled);
    let waiting = tokio::spawn(async move { Bus::connect(&config, "early", &stopper).await });
    rig.nats.resume();
    let bus = waiting.await.unwrap().unwrap();
    bus.health().await.unwrap();
    rig.nats.kill();
    wait_until("the bus says that it is away", async || {
        bus.health().await.is_err()
    })
    .await;
    rig.nats.resume();
    wait_until("the bus is back", async || bus.health().await.is_ok()).await;
}
