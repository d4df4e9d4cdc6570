//! `messages.jsonl`, the table of NATS messages that are no jobs: the kind, the line, and its dead
//! letter's code, field and a part of the message.

use async_nats::jetstream;
use futures::StreamExt as _;
use serde_json::Value;
use togi_runtime::events::{self, DEAD_STREAM};
use togi_runtime::jobs::Kind;
use togi_testing::within;

use crate::{Stage, cases};

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_the_table_is_a_dead_letter_with_its_code_field_and_message() {
    let stage = Stage::new();
    let client = async_nats::connect(&stage.system.nats).await.unwrap();
    let js = jetstream::new(client);
    let letters = js.get_stream(DEAD_STREAM).await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let letters = letters.create_consumer(config).await.unwrap();
    let mut letters = letters.messages().await.unwrap();
    let mut problems = Vec::new();
    for case in cases(include_str!("messages.jsonl")) {
        let text = |part: &str| case[part].as_str().unwrap().to_owned();
        let kind = Kind::from_name(&text("kind")).unwrap();
        let published = js.publish(events::job_subject(kind), text("line").into());
        published.await.unwrap().await.unwrap();
        let letter = within("the dead letter", letters.next()).await;
        let letter = letter.unwrap().unwrap();
        let letter: Value = serde_json::from_slice(&letter.payload).unwrap();
        assert_eq!(letter["message"], text("line"));
        let error = &letter["error"];
        let refused = error["code"] == text("code")
            && error["field"] == text("field")
            && error["message"].as_str().unwrap().contains(&text("says"));
        if !refused {
            problems.push(format!("{case} gave {error}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    stage.nobody_was_disturbed();
}
