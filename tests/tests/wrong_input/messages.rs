//! The table of NATS messages that are no jobs: the kind, the line, and the dead letter's code,
//! field and message.

use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt as _;
use serde_json::Value;
use togi_runtime::events::{self, DEAD_STREAM};
use togi_runtime::jobs::Kind;

use crate::Stage;

/// A kind, a line, and the code, the field and a part of the message of its dead letter.
type Case = (Kind, &'static str, &'static str, &'static str, &'static str);

const MESSAGES: &[Case] = &[
    (
        Kind::Train,
        "train it",
        "INVALID_ARGUMENT",
        "",
        "not the expected JSON",
    ),
    (
        Kind::Train,
        "[]",
        "INVALID_ARGUMENT",
        "",
        "not the expected JSON",
    ),
    (
        Kind::Train,
        r#"{"bass":"demo"}"#,
        "INVALID_ARGUMENT",
        "",
        "unknown field `bass`",
    ),
    (
        Kind::Train,
        r#"{"base":"demo","dataset":"good","recipe":"demo-cpu"}"#,
        "INVALID_ARGUMENT",
        "",
        "invalid type: string \"demo-cpu\"",
    ),
    (
        Kind::Train,
        r#"{"policy":"nobody"}"#,
        "NOT_FOUND",
        "policy",
        "policy \"nobody\" does not exist",
    ),
    (
        Kind::Train,
        r#"{"policy":"p","alias":"a"}"#,
        "INVALID_ARGUMENT",
        "alias",
        "alias is the policy's to say",
    ),
    (
        Kind::Train,
        r#"{"base":"dmo","dataset":"good"}"#,
        "NOT_FOUND",
        "base",
        "did you mean \"demo\"?",
    ),
    (
        Kind::Train,
        r#"{"base":"demo","dataset":"goood"}"#,
        "NOT_FOUND",
        "dataset",
        "did you mean \"good\"?",
    ),
    (
        Kind::Train,
        r#"{"base":"demo","dataset":"good","recipe":{"lora":{"rank":0}}}"#,
        "INVALID_ARGUMENT",
        "recipe.lora.rank",
        "recipe.lora.rank",
    ),
    (
        Kind::Prepare,
        r#"{"name":"x"}"#,
        "INVALID_ARGUMENT",
        "records",
        "records",
    ),
    (
        Kind::Prepare,
        r#"{"name":"A B"}"#,
        "INVALID_ARGUMENT",
        "name",
        "must have 1 to 63 characters",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_the_table_is_a_dead_letter_with_its_code_field_and_message() {
    let stage = Stage::new();
    let client = async_nats::connect(&stage.system.nats).await.unwrap();
    let js = jetstream::new(client);
    let letters = js.get_stream(DEAD_STREAM).await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let letters = letters.create_consumer(config).await.unwrap();
    let mut letters = letters.messages().await.unwrap();
    for (kind, line, code, field, says) in MESSAGES {
        let subject = events::job_subject(*kind);
        let published = js.publish(subject, (*line).into()).await.unwrap();
        published.await.unwrap();
        let letter = tokio::time::timeout(Duration::from_secs(60), letters.next());
        let letter = letter.await.expect(line).unwrap().unwrap();
        let letter: Value = serde_json::from_slice(&letter.payload).unwrap();
        let error = &letter["error"];
        assert_eq!(letter["message"], *line);
        assert_eq!(error["code"], *code, "{letter}");
        assert_eq!(
            error["field"].as_str().unwrap_or_default(),
            *field,
            "{letter}"
        );
        let said = error["message"].as_str().unwrap();
        assert!(said.contains(says), "{says:?} is not in {letter}");
    }
    stage.nobody_was_disturbed();
}
