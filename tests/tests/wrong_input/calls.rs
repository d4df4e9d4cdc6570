//! The table of gRPC calls that are refused: the method, the request as JSON, the code, the field
//! at fault, and what is said.

use serde_json::{Value, json};
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::inference::v1::inference_service_client::InferenceServiceClient;
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::policy_service_client::PolicyServiceClient;
use togi_proto::trainer::v1::trainer_service_client::TrainerServiceClient;
use togi_runtime::error::Error;
use togi_runtime::rpc::client::{Client, channel};
use tonic::{Code, Status};

use crate::Stage;

/// A method, its request, the code, the field at fault, and a part of the message.
type Case = (&'static str, Value, Code, &'static str, &'static str);

fn cases() -> Vec<Case> {
    use Code::{InvalidArgument, NotFound};
    let name = "must have 1 to 63 characters of a-z, 0-9 and \"-\"";
    let recipe = |recipe: Value| json!({ "base": "demo", "dataset": "good", "alias": "a", "recipe": recipe });
    let records = json!({ "upload": "0".repeat(64) });
    let prepare = |settings: Value| {
        json!({
            "name": "x", "records": records, "tokenizer": { "base": "demo" }, "settings": settings,
        })
    };
    let options = |options: Value| json!({ "raw": "q", "options": options });
    vec![
        ("CreateJob", json!({}), InvalidArgument, "base", name),
        (
            "CreateJob",
            json!({ "base": "dmo", "dataset": "good" }),
            NotFound,
            "base",
            "did you mean \"demo\"?",
        ),
        (
            "CreateJob",
            json!({ "base": "demo", "dataset": "goood" }),
            NotFound,
            "dataset",
            "did you mean \"good\"?",
        ),
        (
            "CreateJob",
            json!({ "base": "demo", "dataset": "a/b" }),
            InvalidArgument,
            "dataset",
            name,
        ),
        (
            "CreateJob",
            json!({ "base": "demo", "dataset": "good", "alias": "A" }),
            InvalidArgument,
            "alias",
            name,
        ),
        (
            "CreateJob",
            json!({ "policy": "nobody" }),
            NotFound,
            "policy",
            "does not exist",
        ),
        (
            "CreateJob",
            json!({ "policy": "p", "base": "demo" }),
            InvalidArgument,
            "base",
            "is the policy's to say",
        ),
        (
            "CreateJob",
            json!({ "base": "demo", "dataset": "good", "idempotencyKey": "k".repeat(257) }),
            InvalidArgument,
            "idempotency_key",
            "has more than 256 bytes",
        ),
        (
            "CreateJob",
            recipe(json!({ "lora": { "rank": 0 } })),
            InvalidArgument,
            "recipe.lora.rank",
            "must be",
        ),
        (
            "CreateJob",
            recipe(json!({ "learningRate": "NaN" })),
            InvalidArgument,
            "recipe.learning_rate",
            "must be",
        ),
        (
            "CreateJob",
            recipe(json!({ "lora": { "dropout": 1.0 } })),
            InvalidArgument,
            "recipe.lora.dropout",
            "must be",
        ),
        (
            "CreateJob",
            recipe(json!({ "basePrecision": "int3" })),
            InvalidArgument,
            "recipe.base_precision",
            "int3",
        ),
        ("GetJob", json!({ "job": "" }), InvalidArgument, "job", name),
        (
            "GetJob",
            json!({ "job": "nobody" }),
            NotFound,
            "job",
            "or by at least 4 of its first characters",
        ),
        (
            "CancelJob",
            json!({ "job": "nobody" }),
            NotFound,
            "job",
            "there is no job \"nobody\"",
        ),
        (
            "ListJobs",
            json!({ "pageSize": 1001 }),
            InvalidArgument,
            "page_size",
            "within 1 and 1000",
        ),
        (
            "GetAdapter",
            json!({ "adapter": "9b60" }),
            NotFound,
            "adapter",
            "at least 8 of its digits",
        ),
        (
            "PromoteAdapter",
            json!({ "alias": "a", "generation": "9b60" }),
            InvalidArgument,
            "generation",
            "64",
        ),
        (
            "PromoteAdapter",
            json!({ "alias": "a", "generation": "0".repeat(64) }),
            NotFound,
            "generation",
            "there is no adapter",
        ),
        (
            "PromoteAdapter",
            json!({ "alias": "..", "generation": "0".repeat(64) }),
            InvalidArgument,
            "alias",
            name,
        ),
        (
            "RollbackAlias",
            json!({ "alias": "nothing" }),
            NotFound,
            "alias",
            "there is no alias \"nothing\"",
        ),
        (
            "ApplyPolicy",
            json!({}),
            InvalidArgument,
            "policy",
            "is missing",
        ),
        (
            "ApplyPolicy",
            json!({ "policy": { "name": "P" } }),
            InvalidArgument,
            "policy.name",
            name,
        ),
        (
            "GetPolicy",
            json!({ "name": "nobody" }),
            NotFound,
            "name",
            "does not exist",
        ),
        (
            "DeletePolicy",
            json!({ "name": "nobody" }),
            NotFound,
            "name",
            "does not exist",
        ),
        (
            "Prepare",
            json!({ "name": "x" }),
            InvalidArgument,
            "records",
            "records",
        ),
        ("Prepare", prepare(json!({})), NotFound, "records", "upload"),
        (
            "Prepare",
            prepare(json!({ "maxLength": 1 })),
            InvalidArgument,
            "settings.max_length",
            "max_length",
        ),
        (
            "Prepare",
            prepare(json!({ "validationShare": 1.0 })),
            InvalidArgument,
            "settings.validation_share",
            "validation_share",
        ),
        (
            "Prepare",
            prepare(json!({ "learn": "most" })),
            InvalidArgument,
            "settings.learn",
            "most",
        ),
        (
            "GetPreparation",
            json!({ "job": "nobody" }),
            NotFound,
            "job",
            "there is no job \"nobody\"",
        ),
        (
            "GetDataset",
            json!({ "dataset": "goood" }),
            NotFound,
            "dataset",
            "did you mean \"good\"?",
        ),
        (
            "ListDatasets",
            json!({ "pageToken": "zz" }),
            InvalidArgument,
            "page_token",
            "next_page_token",
        ),
        (
            "Generate",
            json!({}),
            InvalidArgument,
            "prompt",
            "one of instruction and raw must be set",
        ),
        (
            "Generate",
            json!({ "raw": "" }),
            InvalidArgument,
            "raw",
            "must not be empty",
        ),
        (
            "Generate",
            json!({ "raw": "q", "adapter": "../x" }),
            InvalidArgument,
            "adapter",
            "adapter",
        ),
        (
            "Generate",
            json!({ "raw": "q", "adapter": "nobody" }),
            NotFound,
            "",
            "no alias and no generation is named \"nobody\"",
        ),
        (
            "Generate",
            options(json!({ "maxNewTokens": 99999 })),
            InvalidArgument,
            "options.max_new_tokens",
            "must be from 1 to 512",
        ),
        (
            "Generate",
            options(json!({ "temperature": "NaN" })),
            InvalidArgument,
            "options.temperature",
            "must be 0, which is greedy",
        ),
        (
            "Generate",
            options(json!({ "n": 9 })),
            InvalidArgument,
            "options.n",
            "must be from 1 to 8, not 9",
        ),
        (
            "Generate",
            options(json!({ "maxSeconds": -1.0 })),
            InvalidArgument,
            "options.max_seconds",
            "must be over 0 and finite",
        ),
    ]
}

/// Makes one call; the type of the request follows from the method.
async fn call(channel: Client, method: &str, request: Value) -> Status {
    macro_rules! call {
        ($client:ident, $method:ident) => {
            $client::new(channel)
                .$method(tonic::Request::new(
                    serde_json::from_value(request).unwrap(),
                ))
                .await
                .map(drop)
        };
    }
    let answered = match method {
        "CreateJob" => call!(TrainerServiceClient, create_job),
        "GetJob" => call!(TrainerServiceClient, get_job),
        "CancelJob" => call!(TrainerServiceClient, cancel_job),
        "ListJobs" => call!(TrainerServiceClient, list_jobs),
        "GetAdapter" => call!(AdapterServiceClient, get_adapter),
        "PromoteAdapter" => call!(AdapterServiceClient, promote_adapter),
        "RollbackAlias" => call!(AdapterServiceClient, rollback_alias),
        "ApplyPolicy" => call!(PolicyServiceClient, apply_policy),
        "GetPolicy" => call!(PolicyServiceClient, get_policy),
        "DeletePolicy" => call!(PolicyServiceClient, delete_policy),
        "Prepare" => call!(DataPrepServiceClient, prepare),
        "GetPreparation" => call!(DataPrepServiceClient, get_preparation),
        "GetDataset" => call!(DataPrepServiceClient, get_dataset),
        "ListDatasets" => call!(DataPrepServiceClient, list_datasets),
        "Generate" => call!(InferenceServiceClient, generate),
        other => panic!("no such method: {other}"),
    };
    answered.err().unwrap_or_else(|| Status::ok(""))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_the_table_is_refused_with_its_code_field_and_message() {
    let stage = Stage::new();
    let channel = channel(&stage.system.endpoint).unwrap();
    for (method, request, code, field, says) in cases() {
        let shown = format!("{method} {request}");
        let status = call(channel.clone(), method, request).await;
        assert_eq!(status.code(), code, "{shown}: {status:?}");
        let error = Error::from(status);
        assert_eq!(error.field().unwrap_or_default(), field, "{shown}: {error}");
        assert!(
            error.message().contains(says),
            "{shown} does not say {says:?}: {error}"
        );
    }
    stage.nobody_was_disturbed();
}
