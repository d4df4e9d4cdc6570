//! `calls.jsonl`, the table of gRPC calls that are refused: the method, the request as JSON, the
//! code, the field at fault, and a part of the message.

use serde_json::Value;
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::inference::v1::inference_service_client::InferenceServiceClient;
use togi_proto::trainer::v1::adapter_service_client::AdapterServiceClient;
use togi_proto::trainer::v1::policy_service_client::PolicyServiceClient;
use togi_proto::trainer::v1::trainer_service_client::TrainerServiceClient;
use togi_runtime::error::Error;
use togi_runtime::rpc::client::{Client, channel};
use tonic::Status;

use crate::{Stage, cases};

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
    let mut problems = Vec::new();
    for case in cases(include_str!("calls.jsonl")) {
        let text = |part: &str| case[part].as_str().unwrap();
        let status = call(channel.clone(), text("call"), case["request"].clone()).await;
        let error = Error::from(status);
        let refused = error.class().name() == text("code")
            && error.field().unwrap_or_default() == text("field")
            && error.message().contains(text("says"));
        if !refused {
            let (class, field) = (error.class().name(), error.field());
            problems.push(format!("{case} gave {class} {field:?} {error}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    stage.nobody_was_disturbed();
}
