//! Events from one process to another, over restarts and losses; buckets; progress; streams that
//! contradict.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt as _;
use togi_proto::events::v1::{AdapterPromoted, DatasetReady};
use togi_runtime::bus::reader::{EventStream, Start};
use togi_runtime::events::{self, EventKind};
use togi_runtime::registry::replicas;
use togi_runtime::{Bus, Class, Event, Stopper};
use togi_testing::{NatsServer, Rig, wait_until};
use tokio::sync::watch;

fn ready(dataset: &str) -> Event {
    DatasetReady {
        dataset: dataset.into(),
        name: "研ぎ".into(),
        ..Default::default()
    }
    .into()
}

async fn next(stream: &mut EventStream) -> String {
    let received = tokio::time::timeout(Duration::from_secs(25), stream.next()).await;
    received
        .expect("an event in time")
        .unwrap()
        .event
        .about()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_with_their_metadata_and_only_the_wanted_ones() {
    let rig = Rig::start();
    let (one, two) = (
        rig.context("one").await.unwrap(),
        rig.context("two").await.unwrap(),
    );
    one.bus.publish(ready("old")).await.unwrap();
    let mut new = two
        .bus
        .events(&[EventKind::DatasetReady], Start::New)
        .await
        .unwrap();
    let mut all = two.bus.events(&[], Start::All).await.unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    one.bus
        .publish(AdapterPromoted {
            alias: "main".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    one.bus.publish_in(ready("d1"), Some(trace)).await.unwrap();
    // Published twice, it is one event.
    one.bus.publish_in(ready("d1"), Some(trace)).await.unwrap();
    one.bus.publish(ready("d2")).await.unwrap();
    let first = new.next().await.unwrap();
    assert_eq!(first.event, ready("d1"));
    assert_eq!(
        (first.meta.traceparent.as_str(), first.meta.source.as_str()),
        (trace, "togi/one")
    );
    assert_eq!(next(&mut new).await, "d2");
    for about in ["old", "main", "d1", "d2"] {
        assert_eq!(next(&mut all).await, about);
    }
    let mut after = two
        .bus
        .events(&[], Start::After(first.meta.sequence))
        .await
        .unwrap();
    assert_eq!(next(&mut after).await, "d2");
    two.stopper.stop();
    assert!(new.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_lives_through_a_restart_and_a_lost_stream() {
    let mut rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let mut stream = context.bus.events(&[], Start::All).await.unwrap();
    context.bus.publish(ready("before")).await.unwrap();
    assert_eq!(next(&mut stream).await, "before");
    rig.nats.kill();
    rig.nats.resume();
    context.bus.publish(ready("restarted")).await.unwrap();
    assert_eq!(next(&mut stream).await, "restarted");
    rig.nats.kill();
    rig.nats.wipe();
    rig.nats.resume();
    context.bus.publish(ready("wiped")).await.unwrap();
    assert_eq!(next(&mut stream).await, "wiped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_takes_one_writer_at_a_time() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let bucket = context.bus.policies();
    assert!(bucket.entries().await.unwrap().is_empty());
    let mut changes = bucket.watch("a");
    let revision = bucket.create("a", "1").await.unwrap();
    assert_eq!(changes.next().await.unwrap().value.unwrap(), "1");
    assert_eq!(
        bucket.create("a", "x").await.unwrap_err().class(),
        Class::AlreadyExists
    );
    let newer = bucket.update("a", "2", revision).await.unwrap();
    assert_eq!(
        bucket.update("a", "3", revision).await.unwrap_err().class(),
        Class::Aborted
    );
    assert_eq!(changes.next().await.unwrap().revision, newer);
    bucket.put("b", "1").await.unwrap();
    bucket.put("c", "1").await.unwrap();
    bucket.delete("b").await.unwrap();
    assert_eq!(bucket.keys().await.unwrap(), ["a", "c"]);
    assert!(bucket.get("b").await.unwrap().is_none());
    bucket.create("b", "again").await.unwrap();
    assert_eq!(
        bucket.entries().await.unwrap()[1].value.as_ref().unwrap(),
        "again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_the_newest_message_of_each_job() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    assert!(context.bus.progress(&a).await.unwrap().is_none());
    for step in 1..=5 {
        context
            .bus
            .put_progress(&a, &serde_json::json!({ "step": step }))
            .await
            .unwrap();
    }
    context
        .bus
        .put_progress(&b, &serde_json::json!({ "step": 9 }))
        .await
        .unwrap();
    assert_eq!(
        context.bus.progress(&a).await.unwrap().unwrap(),
        r#"{"step":5}"#
    );
    let js = jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    let stream = js.get_stream(events::PROGRESS_STREAM).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_would_lose_work_is_refused() {
    let server = NatsServer::start();
    let js = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let config = jetstream::stream::Config {
        name: "TOGI_JOBS".into(),
        subjects: vec!["togi.jobs.*".into()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    js.create_stream(config).await.unwrap();
    let error = Bus::connect(&server.config(), "one", &Stopper::new())
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::FailedPrecondition);
    assert!(
        error.message().contains("TOGI_JOBS") && error.message().contains("retention"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_refused_without_its_password() {
    let config = togi_runtime::config::NatsConfig::at("nats://user:secret@:port");
    let error = Bus::connect(&config, "one", &Stopper::new())
        .await
        .unwrap_err();
    assert_eq!(error.field(), Some("nats.url"));
    assert!(!error.chain().contains("secret"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_says_what_it_serves_until_it_stops() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let (serves, entry) = watch::channel(vec!["g1".to_owned()]);
    let stopper = context.stopper.child();
    let task = replicas::announce(
        context.bus.clone(),
        "replica-1".into(),
        entry,
        stopper.clone(),
    );
    let task = tokio::spawn(task);
    let bus = Arc::new(context.bus.clone());
    let seen = async |wanted: &str| {
        let entries = replicas::list::<Vec<String>>(&bus).await.unwrap();
        entries
            .get("replica-1")
            .is_some_and(|serves| serves.iter().any(|g| g == wanted))
    };
    wait_until("the replica is announced", async || seen("g1").await).await;
    serves.send(vec!["g2".to_owned()]).unwrap();
    wait_until("its change is announced", async || seen("g2").await).await;
    stopper.stop();
    task.await.unwrap().unwrap();
    assert!(
        replicas::list::<Vec<String>>(&bus)
            .await
            .unwrap()
            .is_empty()
    );
}
