//! Dead letters: jobs that have failed, and messages that are no jobs.

use async_nats::jetstream;
use togi_runtime::jobs::{Kind, State};
use togi_runtime::worker::Outcome;
use togi_runtime::{Class, Error, jobs, layout};
use togi_testing::{Rig, wait_until};

use crate::workers::{Scripted, all, dead, reach, submit, unanswered, work};

#[tokio::test(flavor = "multi_thread")]
async fn five_failed_attempts_are_the_end_and_a_dead_letter() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let handler = Scripted::new(|_, call| async move {
        // A panic counts like an error.
        assert!(call != 1, "on purpose");
        Outcome::Failed(Error::unavailable("the moon is not up"))
    });
    let id = submit(&context, "a").await;
    let worker = work(&context, &handler);
    let job = reach(&context, &id, State::Failed).await;
    assert_eq!((job.attempts, handler.calls()), (5, 5));
    let error = job.failure.unwrap();
    assert_eq!(
        (error.class, error.message.as_str()),
        (Class::Unavailable, "the moon is not up")
    );
    wait_until("the message is acknowledged", async || {
        unanswered(&rig).await == 0
    })
    .await;
    let letters = dead(&rig).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["job"]["id"], id.as_str());
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_messages_become_jobs_and_broken_ones_dead_letters() {
    let rig = Rig::start();
    let context = rig.context("one").await.unwrap();
    let js = jetstream::new(async_nats::connect(rig.nats.url()).await.unwrap());
    for body in [
        r#"{"base":"demo","idempotencyKey":"k"}"#,
        "not json",
        r#"{"base":"demo"}"#,
    ] {
        js.publish("togi.jobs.train", body.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let handler = Scripted::succeeding();
    let worker = work(&context, &handler);
    let id = jobs::job_id(Kind::Train, "k").unwrap();
    reach(&context, &id, State::Succeeded).await;
    wait_until("all three are answered", async || {
        unanswered(&rig).await == 0
    })
    .await;
    assert_eq!(all(&context).list(Kind::Train).await.unwrap().len(), 2);
    assert!(
        context
            .store
            .exists(&layout::job_request(&id))
            .await
            .unwrap()
    );
    let letters = dead(&rig).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (
            letters[0]["message"].as_str(),
            letters[0]["error"]["code"].as_str()
        ),
        (Some("not json"), Some("INVALID_ARGUMENT"))
    );
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_end_fails_its_job_for_good_with_a_dead_letter() {
    let rig = Rig::start();
    let context = rig.context("worker").await.unwrap();
    let store = context.store.clone();
    let handler = Scripted::new(move |claim, call| {
        let store = store.clone();
        async move {
            if call == 0 {
                let key = layout::job_final(claim.lease.job());
                let damaged = bytes::Bytes::from_static(b"not JSON");
                store.put_new(&key, damaged).await.unwrap();
            }
            Outcome::Succeeded {
                result: String::new(),
            }
        }
    });
    let worker = work(&context, &handler);
    let id = submit(&context, "damaged").await;
    let next = submit(&context, "next").await;
    let job = reach(&context, &id, State::Failed).await;
    assert_eq!(job.failure.unwrap().class, Class::DataLoss);
    reach(&context, &next, State::Succeeded).await;
    wait_until("both messages are acknowledged", async || {
        unanswered(&rig).await == 0
    })
    .await;
    let letters = dead(&rig).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["job"]["id"], id.as_str());
    assert_eq!(letters[0]["job"]["error"]["code"], "DATA_LOSS");
    // Also after the bucket is lost: the store alone decides.
    context.bus.jobs().delete(id.as_str()).await.unwrap();
    assert_eq!(all(&context).get(&id).await.unwrap().state, State::Failed);
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_record_is_damaged_goes_to_the_dead_letters() {
    let rig = Rig::start();
    let context = rig.context("worker").await.unwrap();
    let id = submit(&context, "damaged").await;
    let damaged = bytes::Bytes::from_static(b"not JSON");
    context.bus.jobs().put(id.as_str(), damaged).await.unwrap();
    let worker = work(&context, &Scripted::succeeding());
    wait_until("the message is buried", async || {
        dead(&rig).await.len() == 1
    })
    .await;
    wait_until("the message is acknowledged", async || {
        unanswered(&rig).await == 0
    })
    .await;
    let letters = dead(&rig).await;
    assert_eq!(letters[0]["error"]["code"], "DATA_LOSS");
    context.stopper.stop();
    worker.await.unwrap().unwrap();
}
