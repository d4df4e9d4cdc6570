//! Every call while NATS is away, and jobs that wait for a part that is away.

use std::time::Duration;

use futures::stream;
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::dataprep::v1::{
    CancelPreparationRequest, GetDatasetRequest, GetPreparationRequest, ListDatasetsRequest,
    PrepareRequest, RecordSource, TokenizerSource, UploadRequest, WatchPreparationRequest,
    record_source, tokenizer_source,
};
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, CancelJobRequest, CreateJobRequest, DeletePolicyRequest, GetAdapterRequest,
    GetJobRequest, GetPolicyRequest, ListAdaptersRequest, ListAliasesRequest, ListJobsRequest,
    ListPoliciesRequest, PromoteAdapterRequest, RollbackAliasRequest, WatchJobRequest,
    watch_job_response,
};
use togi_testing::{NatsServer, free_port, wait_until};
use togi_trainer::Role;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Response, Status};

use crate::harness::{Process, Shape, System};
use crate::inputs::{ALIAS, BASE, RECORDS, asked};
use crate::policies::policy;

/// Returns a request of somebody who waits less long than the NATS client repeats its own ones.
fn hurried<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(8));
    request
}

/// Returns the answer to a call that must succeed in its time.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> T {
    call.await.unwrap().into_inner()
}

async fn list_jobs(process: &Process) -> Vec<Job> {
    let mut trainer = process.trainer();
    answer(trainer.list_jobs(ListJobsRequest::default()))
        .await
        .jobs
}

fn waits_for(job: Option<Job>, part: &str) -> Job {
    let job = job.unwrap();
    let wait = job.wait.clone().unwrap_or_default();
    assert_eq!(wait.part, part, "{job:?}");
    job
}

/// Calls the trainer; returns the job that was created.
async fn call_trainer(process: &Process) -> String {
    let mut trainer = process.trainer();
    let keyed = CreateJobRequest {
        idempotency_key: "away".to_owned(),
        ..asked("questions", 1)
    };
    let created = answer(trainer.create_job(hurried(keyed.clone()))).await;
    let id = waits_for(created.job, "NATS").id;
    let again = answer(trainer.create_job(hurried(keyed))).await;
    assert_eq!(waits_for(again.job, "NATS").id, id);
    let listed = answer(trainer.list_jobs(hurried(ListJobsRequest::default()))).await;
    assert!(listed.jobs.iter().any(|job| job.id == id), "{listed:?}");
    let job = id.clone();
    let shown = answer(trainer.get_job(hurried(GetJobRequest { job }))).await;
    assert_eq!(shown.request.unwrap().idempotency_key, "away");
    waits_for(shown.job, "NATS");
    let job = id.clone();
    let watched = WatchJobRequest { job, from_step: 1 };
    let mut updates = answer(trainer.watch_job(hurried(watched))).await;
    let first = updates.message().await.unwrap().unwrap().update;
    let Some(watch_job_response::Update::Job(job)) = first else {
        panic!("{first:?}");
    };
    waits_for(Some(job), "NATS");

    let other = answer(trainer.create_job(hurried(asked("questions", 3)))).await;
    let job = other.job.unwrap().id;
    for _ in 0..2 {
        let job = job.clone();
        let ended = answer(trainer.cancel_job(hurried(CancelJobRequest { job }))).await;
        assert_eq!(ended.job.unwrap().state(), JobState::Cancelled);
    }
    id
}

async fn call_registry(process: &Process, generation: &str) {
    let mut adapters = process.adapters();
    let generation = generation.to_owned();
    let promote = PromoteAdapterRequest {
        alias: "while-away".to_owned(),
        generation: generation.clone(),
        allow_base_mismatch: false,
    };
    let promoted = answer(adapters.promote_adapter(hurried(promote))).await;
    assert_eq!(promoted.alias.unwrap().generation, generation);
    let alias = ALIAS.to_owned();
    let back = answer(adapters.rollback_alias(hurried(RollbackAliasRequest { alias }))).await;
    assert_eq!(back.alias.unwrap().revision, 3);
    let aliases = answer(adapters.list_aliases(hurried(ListAliasesRequest {}))).await;
    assert_eq!(aliases.aliases.len(), 2);
    let listed = answer(adapters.list_adapters(hurried(ListAdaptersRequest::default()))).await;
    assert_eq!(listed.adapters.len(), 2);
    let adapter = "while-away".to_owned();
    let shown = answer(adapters.get_adapter(hurried(GetAdapterRequest { adapter }))).await;
    assert_eq!(shown.adapter.unwrap().generation, generation);
}

async fn call_policies(process: &Process) {
    let mut policies = process.policies();
    let policy = Some(policy());
    let applied = answer(policies.apply_policy(hurried(ApplyPolicyRequest { policy }))).await;
    let name = applied.policy.unwrap().name;
    let run = CreateJobRequest {
        policy: name.clone(),
        ..Default::default()
    };
    let mut trainer = process.trainer();
    let run = answer(trainer.create_job(hurried(run))).await;
    let job = waits_for(run.job, "NATS").id;
    answer(trainer.cancel_job(hurried(CancelJobRequest { job }))).await;
    let named = name.clone();
    answer(policies.get_policy(hurried(GetPolicyRequest { name: named }))).await;
    let listed = answer(policies.list_policies(hurried(ListPoliciesRequest {}))).await;
    assert_eq!(listed.policies.len(), 1);
    answer(policies.delete_policy(hurried(DeletePolicyRequest { name }))).await;
}

/// Calls data-prep; returns the preparation that was created.
async fn call_data_prep(process: &Process) -> String {
    let mut client = DataPrepServiceClient::new(process.channel());
    let chunk = br#"{"instruction": "q", "output": "a"}"#.to_vec();
    let upload = client.upload(hurried(stream::iter([UploadRequest { chunk }])));
    let upload = answer(upload).await.upload;
    let prepare = |name: &str| PrepareRequest {
        name: name.to_owned(),
        records: Some(RecordSource {
            source: Some(record_source::Source::Upload(upload.clone())),
            ..Default::default()
        }),
        tokenizer: Some(TokenizerSource {
            source: Some(tokenizer_source::Source::Base(BASE.to_owned())),
        }),
        ..Default::default()
    };
    let kept = answer(client.prepare(hurried(prepare("kept")))).await;
    let id = waits_for(kept.job, "NATS").id;
    let job = id.clone();
    let shown = answer(client.get_preparation(hurried(GetPreparationRequest { job }))).await;
    waits_for(shown.job, "NATS");
    let job = id.clone();
    let mut updates =
        answer(client.watch_preparation(hurried(WatchPreparationRequest { job }))).await;
    waits_for(updates.message().await.unwrap().unwrap().job, "NATS");
    let other = answer(client.prepare(hurried(prepare("other")))).await;
    let job = other.job.unwrap().id;
    let cancelling = client.cancel_preparation(hurried(CancelPreparationRequest { job }));
    let ended = answer(cancelling).await.job.unwrap();
    assert_eq!(ended.state(), JobState::Cancelled);
    let listed = answer(client.list_datasets(hurried(ListDatasetsRequest::default()))).await;
    assert_eq!(listed.datasets.len(), 1);
    let dataset = "questions".to_owned();
    answer(client.get_dataset(hurried(GetDatasetRequest { dataset }))).await;
    id
}

async fn every_call_is_answered(pause: bool) {
    let mut system = System::start();
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    let mut generation = String::new();
    for epochs in [1, 2] {
        let id = process.create(asked("questions", epochs)).await;
        generation = process.wait_for(&id, JobState::Succeeded).await.result;
    }
    if pause {
        system.rig.nats.pause();
    } else {
        system.rig.nats.kill();
    }
    let job = call_trainer(&process).await;
    call_registry(&process, &generation).await;
    call_policies(&process).await;
    let preparation = call_data_prep(&process).await;
    if pause {
        system.rig.nats.go_on();
    } else {
        system.rig.nats.resume();
    }

    let trained = process.wait_for(&job, JobState::Succeeded).await;
    assert_eq!((trained.attempts, trained.wait), (0, None));
    let mut client = DataPrepServiceClient::new(process.channel());
    wait_until("the data set is prepared", async || {
        let job = preparation.clone();
        let asked = client.get_preparation(GetPreparationRequest { job }).await;
        asked.is_ok_and(|answer| answer.into_inner().job.unwrap().state() == JobState::Succeeded)
    })
    .await;
    // Trained once: asked again, the job is the same, and nothing was trained beside it.
    let keyed = CreateJobRequest {
        idempotency_key: "away".to_owned(),
        ..asked("questions", 1)
    };
    assert_eq!(process.create(keyed).await, job);
    let listed = list_jobs(&process).await;
    let mut states: Vec<JobState> = listed.iter().map(Job::state).collect();
    states.sort();
    use JobState::{Cancelled, Succeeded};
    assert_eq!(
        states,
        [Succeeded, Succeeded, Succeeded, Cancelled, Cancelled]
    );
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_while_nats_is_dead_and_a_key_trains_once() {
    every_call_is_answered(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_while_nats_hangs_and_a_key_trains_once() {
    every_call_is_answered(true).await;
}

/// Starts a process with data-prep, and a trainer that looks for it at a port where nobody listens.
/// Returns both, a job that waits there, and the port.
async fn waiting_for_data_prep(system: &System) -> (Process, Process, String, u16) {
    let first = system.process_as("first", Role::Api).await;
    first.prepare("questions", RECORDS).await;
    let port = free_port();
    let shape = Shape {
        data_prep_port: None,
        data_prep: format!("http://127.0.0.1:{port}"),
        ..system.shape()
    };
    let process = system.process_with("trainer", shape).await;
    let id = process.create(asked("questions", 1)).await;
    wait_until("the job waits for data-prep", async || {
        let wait = process.job(&id).await.wait.unwrap_or_default();
        wait.part == "data-prep"
    })
    .await;
    (first, process, id, port)
}

/// Passes connections to a port on to an endpoint, until it is dropped.
async fn forward(port: u16, endpoint: &str) -> AbortOnDropHandle<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let address = endpoint.trim_start_matches("http://").to_owned();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_cancelled_without_nats_is_not_promoted_by_a_worker_that_has_nats() {
    let system = System::start();
    let mut elsewhere = NatsServer::start();
    let shape = Shape {
        roles: vec![Role::Api],
        nats: elsewhere.config(),
        ..system.shape()
    };
    let cut_off = system.process_with("cut-off", shape).await;
    elsewhere.kill();
    let (first, process, id, port) = waiting_for_data_prep(&system).await;
    let job = id.clone();
    let mut trainer = cut_off.trainer();
    let cancelled = answer(trainer.cancel_job(hurried(CancelJobRequest { job }))).await;
    assert_eq!(cancelled.job.unwrap().state(), JobState::Cancelled);
    assert_eq!(process.job(&id).await.state(), JobState::Running);

    let _forward = forward(port, &first.endpoint).await;
    process.wait_for(&id, JobState::Cancelled).await;
    let mut adapters = process.adapters();
    let aliases = answer(adapters.list_aliases(ListAliasesRequest {})).await;
    assert_eq!(aliases.aliases, []);
    cut_off.stop().await;
    process.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_says_that_it_waits_for_data_prep_and_goes_on_when_it_is_there() {
    let system = System::start();
    let (first, process, id, port) = waiting_for_data_prep(&system).await;
    first.stop().await;
    let wait = process.job(&id).await.wait.unwrap_or_default();
    assert_eq!(wait.reason, "connection refused");
    let listed = list_jobs(&process).await;
    assert_eq!(listed[0].wait.as_ref().unwrap().part, "data-prep");
    assert_eq!(listed[0].state(), JobState::Running);

    let shape = Shape {
        roles: vec![],
        data_prep_port: Some(port),
        ..system.shape()
    };
    let data_prep = system.process_with("data-prep", shape).await;
    let job = process.wait_for(&id, JobState::Succeeded).await;
    assert_eq!((job.attempts, job.wait), (0, None));
    process.stop().await;
    data_prep.stop().await;
}
