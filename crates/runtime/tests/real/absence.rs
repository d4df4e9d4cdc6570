//! Calls while NATS is away: killed, or paused with its connections open. Each call has a deadline
//! that is shorter than the requests of the NATS client, so that it fails if it waits for them.

use std::time::Duration;

use futures::StreamExt as _;
use togi_common::{AliasName, Digest, Generation};
use togi_runtime::bus::reader::Start;
use togi_runtime::events::EventKind;
use togi_runtime::jobs::{Kind, State};
use togi_runtime::life::deadline::{Deadline, bounded};
use togi_runtime::registry::aliases::Aliases;
use togi_runtime::registry::revisions::BaseMismatch;
use togi_runtime::worker::Outcome;
use togi_runtime::{Class, Context, Error, Result, layout};
use togi_testing::{NatsServer, Rig, wait_until};

use crate::workers::{Scripted, all, next, reach, submit, work};

/// An absence of NATS.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Paused,
}

impl Outage {
    const ALL: [Self; 2] = [Self::Killed, Self::Paused];

    fn begin(self, nats: &mut NatsServer) {
        match self {
            Self::Killed => nats.kill(),
            Self::Paused => nats.pause(),
        }
    }

    fn end(self, nats: &mut NatsServer) {
        match self {
            Self::Killed => nats.resume(),
            Self::Paused => nats.go_on(),
        }
    }
}

/// Runs work as a call of somebody who waits for three seconds.
async fn call<T>(work: impl Future<Output = T>) -> T {
    let work = async { Ok::<_, Error>(work.await) };
    let answered = bounded("", work);
    let deadline = Deadline::after(Some(Duration::from_secs(3)));
    deadline.scope(answered).await.expect("an answer in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_accepted_without_nats_and_done_once_when_it_is_back() {
    for outage in Outage::ALL {
        let mut rig = Rig::start();
        let context = rig.context("one").await.unwrap();
        let handler = Scripted::succeeding();
        let worker = work(&context, &handler);
        let jobs = all(&context);
        let before = submit(&context, "before").await;
        reach(&context, &before, State::Succeeded).await;
        outage.begin(&mut rig.nats);

        let id = call(submit(&context, "key")).await;
        assert_eq!(call(submit(&context, "key")).await, id);
        let job = call(jobs.get(&id)).await.unwrap();
        let wait = job.wait.expect("it waits");
        assert_eq!(
            (job.state, wait.part.as_str()),
            (State::Queued, "NATS"),
            "{outage:?}"
        );
        let listed = call(jobs.list(Kind::Train)).await.unwrap();
        let states: Vec<State> = listed.iter().map(|job| job.state).collect();
        assert_eq!(states, [State::Queued, State::Succeeded]);

        outage.end(&mut rig.nats);
        reach(&context, &id, State::Succeeded).await;
        assert_eq!(submit(&context, "key").await, id);
        let job = jobs.get(&id).await.unwrap();
        assert_eq!((job.state, job.wait), (State::Succeeded, None));
        assert_eq!(handler.calls(), 2, "{outage:?}");
        context.stopper.stop();
        worker.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_nats_go_and_come_back() {
    let mut rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let id = submit(&context, "a").await;
    let mut updates = all(&context).watch(&id).await.unwrap();
    let first = updates.next().await.unwrap();
    assert_eq!(first.wait.unwrap().part, "a worker");
    rig.nats.kill();
    let away = updates.next().await.unwrap();
    assert_eq!(away.wait.unwrap().part, "NATS");
    rig.nats.resume();
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    let last = updates.filter(|job| std::future::ready(job.state.is_final()));
    let last = last.boxed().next().await.unwrap();
    assert_eq!((last.state, last.wait), (State::Succeeded, None));
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_without_nats_has_ended_and_is_not_done_later() {
    for outage in Outage::ALL {
        let mut rig = Rig::start();
        let context = rig.context("one").await.unwrap();
        let stubborn = Scripted::new(|claim, _| async move {
            claim.lease.lost().await;
            Outcome::LeaseLost
        });
        let worker = work(&context, &stubborn);
        let running = submit(&context, "running").await;
        reach(&context, &running, State::Running).await;
        let queued = submit(&context, "queued").await;
        outage.begin(&mut rig.nats);

        let jobs = all(&context);
        for id in [&running, &queued, &queued] {
            let ended = call(jobs.cancel(id)).await.unwrap();
            assert_eq!(ended.state, State::Cancelled, "{outage:?}");
        }
        outage.end(&mut rig.nats);
        let kept = tokio::spawn(jobs.clone().keep(Kind::Train, context.stopper.clone()));
        for id in [&running, &queued] {
            wait_until("the record has ended", async || {
                let entry = context.bus.jobs().get(id.as_str()).await;
                let value = entry.ok().flatten().and_then(|entry| entry.value);
                value.is_some_and(|value| String::from_utf8_lossy(&value).contains("CANCELLED"))
            })
            .await;
        }
        wait_until("the worker has noticed", async || {
            !stubborn.claim(0).lease.is_held()
        })
        .await;
        let error = jobs.cancel(&"nobody".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound);
        assert_eq!(stubborn.calls(), 1);
        context.stopper.stop();
        worker.await.unwrap().unwrap();
        kept.await.unwrap().unwrap();
    }
}

async fn publish(context: &Context, n: u8) -> Generation {
    let generation: Generation = Digest::from([n; 32]).into();
    let manifest = layout::adapter_manifest(generation);
    context.store.put_new(&manifest, "{}").await.unwrap();
    generation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_done_without_nats_and_its_event_follows() {
    for outage in Outage::ALL {
        let mut rig = Rig::start();
        let context = rig.context("one").await.unwrap();
        let aliases = Aliases::new(&context.bus, &context.store);
        let (one, two) = (publish(&context, 1).await, publish(&context, 2).await);
        let (main, other): (AliasName, AliasName) =
            ("main".parse().unwrap(), "other".parse().unwrap());
        let refused = BaseMismatch::Refused;
        aliases.promote(&main, one, refused).await.unwrap();
        let kept = tokio::spawn(aliases.clone().keep_told(context.stopper.clone()));
        outage.begin(&mut rig.nats);

        let promoted = call(aliases.promote(&main, two, refused)).await.unwrap();
        assert_eq!((promoted.revision, promoted.generation()), (2, two));
        let back = call(aliases.rollback(&main)).await.unwrap();
        assert_eq!((back.revision, back.generation()), (3, one));
        call(aliases.promote(&other, two, refused)).await.unwrap();
        assert_eq!(call(aliases.list()).await.unwrap().len(), 2);

        outage.end(&mut rig.nats);
        let kinds = [EventKind::AdapterPromoted, EventKind::AdapterRolledBack];
        let mut events = context.bus.events(&kinds, Start::All).await.unwrap();
        let mut heard = Vec::new();
        while !heard.contains(&("adapter.rolled-back", "main".to_owned()))
            || !heard.contains(&("adapter.promoted", "other".to_owned()))
        {
            let event = next(&mut events).await.event;
            heard.push((event.kind().name(), event.about().to_owned()));
        }
        wait_until("the mirror is told", async || {
            let mirrored = context.bus.aliases().get("main").await.ok().flatten();
            let value = mirrored.and_then(|entry| entry.value).unwrap_or_default();
            String::from_utf8_lossy(&value).contains("\"revision\":3")
        })
        .await;
        assert_eq!(aliases.tell_rest().await.unwrap(), 0);
        context.stopper.stop();
        kept.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_without_a_connection_is_not_sent_later() {
    let mut rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    rig.nats.kill();
    wait_until("the absence is known", async || {
        context.bus.presence().borrow().is_some()
    })
    .await;
    let put: Result<u64> = context.bus.policies().put("a", "late").await;
    let error = put.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(
        error.message().starts_with("NATS has not answered since"),
        "{error}"
    );
    rig.nats.resume();
    wait_until("NATS is back", async || {
        context.bus.presence().borrow().is_none()
    })
    .await;
    context.bus.policies().put("b", "1").await.unwrap();
    assert_eq!(context.bus.policies().keys().await.unwrap(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_in_the_record_until_it_is_over() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let (go, waits) = tokio::sync::watch::channel(0);
    let handler = Scripted::new(move |claim, call| {
        let mut waits = waits.clone();
        async move {
            if call == 0 {
                return Outcome::Failed(Error::unavailable("not yet"));
            }
            let wait = togi_runtime::jobs::Wait::new("data-prep", "connection refused");
            claim.lease.waits_for(&wait).await;
            let _ = waits.wait_for(|step| *step > 0).await;
            claim.lease.goes_on().await;
            let _ = waits.wait_for(|step| *step > 1).await;
            Outcome::Succeeded { result: "x".into() }
        }
    });
    let jobs = all(&context);
    let id = submit(&context, "a").await;
    let part = async || jobs.get(&id).await.unwrap().wait.map(|wait| wait.part);
    assert_eq!(part().await.as_deref(), Some("a worker"));
    let worker = work(&context, &handler);
    wait_until("it waits", async || {
        part().await.as_deref() == Some("data-prep")
    })
    .await;
    let listed = jobs.list(Kind::Train).await.unwrap();
    assert_eq!(
        listed[0].wait.as_ref().unwrap().reason,
        "connection refused"
    );
    go.send_replace(1);
    wait_until("it goes on", async || part().await.is_none()).await;
    go.send_replace(2);
    reach(&context, &id, State::Succeeded).await;
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}
