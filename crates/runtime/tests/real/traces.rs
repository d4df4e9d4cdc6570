//! Traces go on from a request to its job.

use async_nats::jetstream;
use togi_runtime::bus::reader::Start;
use togi_runtime::jobs::{Kind, State};
use togi_runtime::worker::Outcome;
use togi_runtime::{Event, events, jobs};
use togi_testing::Rig;

use crate::workers::{Scripted, next, reach, submit, work};

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_the_request_goes_on_in_the_worker() {
    togi_runtime::telemetry::init(&Default::default(), "test")
        .unwrap()
        .flush()
        .await;
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let mut said = context
        .bus
        .events(&[events::EventKind::CheckpointSaved], Start::New)
        .await
        .unwrap();
    let (bus, handler_context) = (context.bus.clone(), context.clone());
    let handler = Scripted::new(move |claim, _| {
        let bus = bus.clone();
        async move {
            let event: Event = togi_proto::events::v1::CheckpointSaved {
                job: claim.id().to_string(),
                ..Default::default()
            }
            .into();
            bus.publish(event).await.unwrap();
            Outcome::Succeeded { result: "x".into() }
        }
    });
    let worker = work(&handler_context, &handler);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let span = togi_runtime::telemetry::span_with_parent(
        tracing::info_span!(target: "togi_test", "request"),
        &format!("00-{trace}-b7ad6b7169203331-01"),
    );
    tracing::Instrument::instrument(submit(&context, "a"), span).await;
    let received = next(&mut said).await;
    assert!(
        received.meta.traceparent.contains(trace),
        "{}",
        received.meta.traceparent
    );
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_message_begins_a_trace_or_goes_on_with_its_senders() {
    togi_runtime::telemetry::init(&Default::default(), "test")
        .unwrap()
        .flush()
        .await;
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let js = jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    let subject = events::job_subject(Kind::Train);
    for (key, headers) in [("known", headers), ("new", Default::default())] {
        let body = format!("{{\"base\":\"demo\",\"idempotencyKey\":\"{key}\"}}");
        let sent = js.publish_with_headers(subject.clone(), headers, body.into());
        sent.await.unwrap().await.unwrap();
    }
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    let mut traces = Vec::new();
    for key in ["known", "new"] {
        let id = jobs::job_id(Kind::Train, key).unwrap();
        let job = reach(&context, &id, State::Succeeded).await;
        traces.push(job.traceparent);
    }
    assert!(traces[0].contains(trace), "{traces:?}");
    assert_eq!(traces[1].len(), traces[0].len(), "{traces:?}");
    assert!(!traces[1].contains(trace), "{traces:?}");
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}
