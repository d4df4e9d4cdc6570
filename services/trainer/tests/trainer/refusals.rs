//! Requests that are refused on arrival, each with its field and code. Nothing is queued.

use togi_model::Config;
use togi_proto::trainer::v1::{
    CreateJobRequest, GetAdapterRequest, ListJobsRequest, PromoteAdapterRequest,
    RollbackAliasRequest,
};
use togi_runtime::{Class, Error, layout};
use togi_tokens::{DatasetManifest, Split};
use togi_trainer::Role;
use tonic::Status;

use crate::harness::{Process, Shape, System, settings};
use crate::inputs::{ALIAS, BASE, RECORDS, TOKENIZER, asked, config, lines, write_base};

const OTHER_TOKENIZER: &[u8] =
    include_bytes!("../../../../crates/tokens/tests/fixtures/prefix.model");

async fn refusal(
    process: &Process,
    change: impl FnOnce(&mut CreateJobRequest),
) -> (Class, String, String) {
    let mut request = asked("questions", 1);
    change(&mut request);
    let error = Error::from(process.trainer().create_job(request).await.unwrap_err());
    (
        error.class(),
        error.field().unwrap_or_default().to_owned(),
        error.message().to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "a table, one row for each refusal")]
async fn what_does_not_fit_is_refused_by_name_and_nothing_is_queued() {
    let system = System::start();
    write_base(
        &system.base_folder("other-words"),
        &config(),
        OTHER_TOKENIZER,
    );
    write_base(
        &system.base_folder("short"),
        &Config {
            max_position_embeddings: 32,
            ..config()
        },
        TOKENIZER,
    );
    write_base(&system.base_folder("broken"), &config(), TOKENIZER);
    std::fs::write(
        system.base_folder("broken").join("model.safetensors"),
        b"no tensors",
    )
    .unwrap();
    write_base(&system.base_folder("mute"), &config(), b"no tokenizer");
    write_base(
        &system.base_folder("few-ids"),
        &Config {
            vocab_size: 16,
            ..config()
        },
        TOKENIZER,
    );
    write_base(
        &system.base_folder("dropping"),
        &Config {
            hidden_dropout: 0.1,
            ..config()
        },
        TOKENIZER,
    );
    let process = system.process_as("api", Role::Api).await;
    process.prepare("questions", RECORDS).await;
    let nothing = without_rows(&process).await;

    type Change = Box<dyn FnOnce(&mut CreateJobRequest)>;
    let base = |name: &'static str| -> Change { Box::new(move |r| r.base = name.into()) };
    let dataset = |name: String| -> Change { Box::new(move |r| r.dataset = name) };
    let alias = |name: &'static str| -> Change { Box::new(move |r| r.alias = name.into()) };
    let table: Vec<(Change, Class, &str, &str)> = vec![
        (base("unknown"), Class::NotFound, "base", "configured are"),
        (base("../etc"), Class::InvalidArgument, "base", ""),
        (
            base("dropping"),
            Class::FailedPrecondition,
            "base",
            "hidden_dropout 0.1",
        ),
        (
            base("broken"),
            Class::FailedPrecondition,
            "base",
            "not usable",
        ),
        (base("mute"), Class::FailedPrecondition, "base", "tokenizer"),
        (base("few-ids"), Class::FailedPrecondition, "base", "16 ids"),
        (
            base("other-words"),
            Class::FailedPrecondition,
            "dataset",
            "tokenizer",
        ),
        (
            base("short"),
            Class::FailedPrecondition,
            "dataset",
            "max_length 48",
        ),
        (
            dataset("unknown".into()),
            Class::NotFound,
            "dataset",
            "does not exist",
        ),
        (
            dataset("0".repeat(64)),
            Class::NotFound,
            "dataset",
            "does not exist",
        ),
        (
            dataset("../x".into()),
            Class::InvalidArgument,
            "dataset",
            "",
        ),
        (
            dataset(nothing),
            Class::FailedPrecondition,
            "dataset",
            "no rows",
        ),
        (alias("a/b"), Class::InvalidArgument, "alias", ""),
        (alias(".."), Class::InvalidArgument, "alias", ""),
        (alias(""), Class::InvalidArgument, "alias", ""),
        (
            recipe(|r| r.base_precision = "int3".into()),
            Class::InvalidArgument,
            "recipe.base_precision",
            "known are",
        ),
        (
            recipe(|r| r.learning_rate = Some(f64::NAN)),
            Class::InvalidArgument,
            "recipe.learning_rate",
            "NaN",
        ),
        (
            recipe(|r| r.weight_decay = Some(-1.0)),
            Class::InvalidArgument,
            "recipe.weight_decay",
            "negative",
        ),
        (
            lora(|l| l.rank = Some(0)),
            Class::InvalidArgument,
            "recipe.lora.rank",
            "0",
        ),
        (
            lora(|l| l.rank = Some(17)),
            Class::InvalidArgument,
            "recipe.lora.rank",
            "hidden size 16",
        ),
        (
            lora(|l| l.dropout = Some(1.0)),
            Class::InvalidArgument,
            "recipe.lora.dropout",
            "below 1",
        ),
        (
            lora(|l| l.target_modules = vec!["embed_in".into()]),
            Class::InvalidArgument,
            "recipe.lora.target_modules",
            "embed_in",
        ),
    ];
    for (change, class, field, part) in table {
        let (found, at, message) = refusal(&process, change).await;
        assert_eq!((found, at.as_str()), (class, field), "{message}");
        assert!(message.contains(part), "{part} in {message}");
    }
    let listed = process
        .trainer()
        .list_jobs(ListJobsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(listed.jobs.is_empty(), "{:?}", listed.jobs);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_alias_or_generation_is_refused_by_its_field() {
    let system = System::start();
    let process = system.process_as("api", Role::Api).await;
    let mut adapters = process.adapters();
    let refused = |status: Status, field: &str, text: &str| {
        let error = Error::from(status);
        let found = (error.class(), error.field());
        assert_eq!(
            found,
            (Class::InvalidArgument, Some(field)),
            "{text:?}: {error}"
        );
    };
    let long = "a".repeat(64);
    for text in [
        "",
        "..",
        "../up",
        "a/b",
        "A",
        "-a",
        "日本",
        &format!("{long}a"),
    ] {
        let promotion = PromoteAdapterRequest {
            alias: text.to_owned(),
            generation: long.clone(),
            ..Default::default()
        };
        let status = adapters.promote_adapter(promotion).await.unwrap_err();
        refused(status, "alias", text);
        let rollback = RollbackAliasRequest {
            alias: text.to_owned(),
        };
        let status = adapters.rollback_alias(rollback).await.unwrap_err();
        refused(status, "alias", text);
        let asked = GetAdapterRequest {
            adapter: text.to_owned(),
        };
        let status = adapters.get_adapter(asked).await.unwrap_err();
        refused(status, "adapter", text);
    }
    for text in ["", "zz", "main", &"A".repeat(64), &format!("{long}a")] {
        let promotion = PromoteAdapterRequest {
            alias: ALIAS.to_owned(),
            generation: text.to_owned(),
            ..Default::default()
        };
        let status = adapters.promote_adapter(promotion).await.unwrap_err();
        refused(status, "generation", text);
    }
    process.stop().await;
}

/// Returns a data set whose records are all held out for validation.
async fn without_rows(process: &Process) -> String {
    let others = process.prepare("others", RECORDS).await;
    let path = layout::dataset_manifest(others.parse().unwrap());
    let mut manifest: DatasetManifest = process.store().get_json(&path).await.unwrap();
    manifest.dataset = "e".repeat(64).parse().unwrap();
    for part in &mut manifest.parts {
        part.split = Split::Validation;
    }
    let path = layout::dataset_manifest(manifest.dataset);
    process
        .store()
        .put_new(&path, manifest.to_json())
        .await
        .unwrap();
    manifest.dataset.into()
}

fn recipe(
    change: impl FnOnce(&mut togi_proto::trainer::v1::Recipe) + 'static,
) -> Box<dyn FnOnce(&mut CreateJobRequest)> {
    Box::new(move |request| change(request.recipe.as_mut().unwrap()))
}

fn lora(
    change: impl FnOnce(&mut togi_proto::trainer::v1::Lora) + 'static,
) -> Box<dyn FnOnce(&mut CreateJobRequest)> {
    recipe(move |recipe| change(recipe.lora.as_mut().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_memory_does_not_hold_is_refused_with_the_plan() {
    let system = System::start();
    let process = system
        .process_with(
            "api",
            Shape {
                roles: vec![Role::Api],
                memory_bytes: 1_000_000,
                ..system.shape()
            },
        )
        .await;
    process
        .prepare_with("questions", &lines(4), BASE, settings(64))
        .await;
    let (class, _, message) = refusal(&process, |r| {
        r.recipe.as_mut().unwrap().batch_size = Some(64)
    })
    .await;
    assert_eq!(class, Class::ResourceExhausted);
    for part in [
        "of cpu's memory",
        "1000000 are available",
        "recipe.batch_size ",
        "weights ",
        "lora ",
        "optimizer ",
        "activations ",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    process.stop().await;
}
