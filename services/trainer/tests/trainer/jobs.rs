//! The life of a job as a client sees it.

use togi_proto::job::v1::JobState;
use togi_proto::trainer::v1::{
    CancelJobRequest, ListJobsRequest, PromoteAdapterRequest, RollbackAliasRequest,
};
use togi_runtime::layout;
use togi_testing::wait_until;
use togi_trainer::Role;
use tonic::Code;

use crate::harness::System;
use crate::inputs::{ALIAS, RECORDS, asked, numbers};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_job_for_ever_and_waiting_jobs_know_their_place() {
    let system = System::start();
    let process = system.process_as("api", Role::Api).await;
    process.prepare("questions", RECORDS).await;
    let mut keyed = asked("questions", 1);
    keyed.idempotency_key = "mine".to_owned();

    let only_asked = togi_proto::trainer::v1::CreateJobRequest {
        validate_only: true,
        ..keyed.clone()
    };
    let answer = process
        .trainer()
        .create_job(only_asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.job, answer.steps), (None, 3));
    let plan = answer.plan.unwrap();
    assert!(
        plan.weights_bytes > 0
            && plan.lora_bytes > 0
            && plan.optimizer_bytes > 0
            && plan.activations_bytes > 0
    );
    assert_eq!(
        plan.total_bytes,
        plan.weights_bytes + plan.lora_bytes + plan.optimizer_bytes + plan.activations_bytes
    );
    assert!(plan.available_bytes > plan.total_bytes);

    let first = process.create(keyed.clone()).await;
    let second = process.create(asked("questions", 1)).await;
    // A newer revision of the data set does not make the same request another job.
    process.prepare("questions", RECORDS + 1).await;
    assert_eq!(process.create(keyed.clone()).await, first);
    let mut other = keyed.clone();
    other.recipe.as_mut().unwrap().seed = Some(1);
    let refused = process.trainer().create_job(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let third = process.create(asked("questions", 1)).await;
    assert_ne!(second, third);

    let mut places = Vec::new();
    for id in [&first, &second, &third] {
        let job = process.job(id).await;
        assert_eq!(job.state(), JobState::Queued);
        places.push(job.queue_position);
    }
    assert_eq!(places, [0, 1, 2]);
    let page = ListJobsRequest {
        page_size: 2,
        ..Default::default()
    };
    let page = process
        .trainer()
        .list_jobs(page)
        .await
        .unwrap()
        .into_inner();
    let rest = ListJobsRequest {
        page_size: 2,
        page_token: page.next_page_token,
    };
    let rest = process
        .trainer()
        .list_jobs(rest)
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<String> = page
        .jobs
        .into_iter()
        .chain(rest.jobs)
        .map(|job| job.id)
        .collect();
    assert_eq!(
        (ids, rest.next_page_token.as_str()),
        (vec![third, second, first], "")
    );
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_where_it_is_and_an_ended_one_cannot_be_cancelled() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let id = process.create(asked("questions", 100_000)).await;
    process.wait_for_step(&id, 5).await;
    let cancel = || CancelJobRequest { job: id.clone() };
    process.trainer().cancel_job(cancel()).await.unwrap();
    let (lines, job) = process.watch(&id, 1, usize::MAX).await;
    assert_eq!(job.state(), JobState::Cancelled);
    assert_eq!(
        numbers(&lines),
        (1..=lines.len() as u64).collect::<Vec<_>>()
    );
    let again = process
        .trainer()
        .cancel_job(cancel())
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    assert_eq!(again.state(), JobState::Cancelled);
    let log = layout::job_log(&id.parse().unwrap());
    assert!(process.store().exists(&log).await.unwrap());

    let done = process.create(asked("questions", 1)).await;
    process.wait_for(&done, JobState::Succeeded).await;
    let refused = process
        .trainer()
        .cancel_job(CancelJobRequest { job: done })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let unknown = process
        .trainer()
        .cancel_job(CancelJobRequest {
            job: "nobody".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_goes_forward_by_promotion_and_back_by_rollback() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let first = process.create(asked("questions", 1)).await;
    let first = process.wait_for(&first, JobState::Succeeded).await.result;
    let mut manual = asked("questions", 1);
    manual.recipe.as_mut().unwrap().seed = Some(1);
    manual.recipe.as_mut().unwrap().promote = "manual".to_owned();
    let second = process.create(manual).await;
    let second = process.wait_for(&second, JobState::Succeeded).await.result;
    assert_ne!(first, second);

    let mut adapters = process.adapters();
    let nothing_before = RollbackAliasRequest {
        alias: ALIAS.to_owned(),
    };
    let refused = adapters
        .rollback_alias(nothing_before.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let promote = PromoteAdapterRequest {
        alias: ALIAS.to_owned(),
        generation: second.clone(),
        ..Default::default()
    };
    let alias = adapters
        .promote_adapter(promote)
        .await
        .unwrap()
        .into_inner()
        .alias
        .unwrap();
    assert_eq!(
        (alias.generation.as_str(), alias.revision),
        (second.as_str(), 2)
    );
    let alias = adapters
        .rollback_alias(nothing_before)
        .await
        .unwrap()
        .into_inner()
        .alias
        .unwrap();
    assert_eq!(
        (alias.generation.as_str(), alias.revision),
        (first.as_str(), 3)
    );

    let unknown = PromoteAdapterRequest {
        alias: ALIAS.to_owned(),
        generation: "0".repeat(64),
        ..Default::default()
    };
    let refused = adapters.promote_adapter(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_message_is_a_job_like_any_other() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let stranger = async_nats::connect(system.rig.nats.url()).await.unwrap();
    let body = serde_json::to_vec(&asked("questions", 1)).unwrap();
    stranger
        .publish("togi.jobs.train", body.into())
        .await
        .unwrap();
    stranger.flush().await.unwrap();
    let mut ids = Vec::new();
    wait_until("the message is a job", async || {
        let jobs = process
            .trainer()
            .list_jobs(ListJobsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .jobs;
        ids = jobs.into_iter().map(|job| job.id).collect();
        !ids.is_empty()
    })
    .await;
    let job = process.wait_for(&ids[0], JobState::Succeeded).await;
    assert_eq!(job.result.len(), 64);
    process.stop().await;
}
