//! Which revision a policy trains next, and which other requests may use the policy.

use bytes::Bytes;
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, CreateJobRequest, Gate, GetAdapterRequest, GetJobRequest, Policy, Trigger,
};
use togi_runtime::jobs::{Kind, job_id};
use togi_runtime::{events, layout};
use togi_testing::wait_until;
use togi_trainer::Role;
use tonic::Code;

use crate::harness::{Process, System};
use crate::inputs::{ALIAS, BASE, RECORDS, asked};
use crate::policies::{self, jobs, stays, wait_for_jobs};

fn policy() -> Policy {
    Policy {
        gate: Some(Gate {
            loss_tolerance: Some(1e6),
            ..Default::default()
        }),
        ..policies::policy()
    }
}

async fn apply(process: &Process, policy: Policy) {
    let asked = ApplyPolicyRequest {
        policy: Some(policy),
    };
    process.policies().apply_policy(asked).await.unwrap();
}

/// Returns the data set that the served adapter was trained on.
async fn served(process: &Process) -> String {
    let asked = GetAdapterRequest {
        adapter: ALIAS.into(),
    };
    let found = process.adapters().get_adapter(asked).await.unwrap();
    found.into_inner().adapter.unwrap().dataset
}

/// Returns the first job of the policy for a revision.
async fn job_of(process: &Process, revision: u64) -> Option<Job> {
    let key = format!("policy/fresh-answers/1/{revision}");
    let id = job_id(Kind::Train, &key).unwrap().to_string();
    let asked = GetJobRequest { job: id };
    let answer = process.trainer().get_job(asked).await;
    match answer {
        Ok(answer) => answer.into_inner().job,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_revisions_that_come_while_one_trains_only_the_newest_is_next() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("others", RECORDS).await;
    let other = CreateJobRequest {
        alias: "others".into(),
        ..asked("others", 4000)
    };
    let busy = process.create(other).await;
    process.wait_for_step(&busy, 1).await;
    apply(&process, policy()).await;
    process.prepare_held_out("questions", RECORDS).await;
    wait_until("the first revision's job waits", async || {
        job_of(&process, 1).await.is_some()
    })
    .await;
    process.prepare_held_out("questions", RECORDS + 1).await;
    let newest = process.prepare_held_out("questions", RECORDS + 2).await;
    let cancel = togi_proto::trainer::v1::CancelJobRequest { job: busy };
    process.trainer().cancel_job(cancel).await.unwrap();
    wait_until("the newest revision is trained", async || {
        let job = job_of(&process, 3).await;
        job.is_some_and(|job| job.state() == JobState::Succeeded)
    })
    .await;
    let first = job_of(&process, 1).await.unwrap();
    assert_eq!(first.state(), JobState::Cancelled, "{first:?}");
    let error = first.error.unwrap();
    assert_eq!(
        error.message,
        "revision 3 of the data set is trained instead"
    );
    assert!(job_of(&process, 2).await.is_none());
    assert_eq!(served(&process).await, newest);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_that_somebody_ends_is_not_begun_again() {
    let system = System::start();
    let process = system.process("one").await;
    let long = Policy {
        recipe: asked("questions", 4000).recipe,
        ..policy()
    };
    apply(&process, long).await;
    process.prepare_held_out("questions", RECORDS).await;
    wait_until("the revision's job is there", async || {
        job_of(&process, 1).await.is_some()
    })
    .await;
    let job = job_of(&process, 1).await.unwrap().id;
    process.wait_for_step(&job, 1).await;
    let cancel = togi_proto::trainer::v1::CancelJobRequest { job: job.clone() };
    process.trainer().cancel_job(cancel).await.unwrap();
    process.wait_for(&job, JobState::Cancelled).await;
    stays(&process, 1).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_cannot_be_gated_is_passed_over() {
    let system = System::start();
    let one = system.process("one").await;
    apply(&one, policy()).await;
    one.stop().await;
    let quiet = system.process_as("quiet", Role::Worker).await;
    let good = quiet.prepare_held_out("questions", RECORDS).await;
    quiet.prepare("questions", RECORDS + 1).await;
    quiet.stop().await;
    let back = system.process("back").await;
    wait_for_jobs(&back, 1).await;
    assert_eq!(served(&back).await, good);
    stays(&back, 1).await;
    // Applying the same policy now is refused at once.
    let mut other = policy();
    other.name = "others".into();
    let asked = ApplyPolicyRequest {
        policy: Some(other),
    };
    let refused = back.policies().apply_policy(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("validation rows"), "{refused}");
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_client_alone_makes_a_policy_train() {
    let system = System::start();
    let process = system.process("one").await;
    let first = process.prepare_held_out("questions", RECORDS).await;
    apply(&process, policy()).await;
    stays(&process, 0).await;
    let stranger = async_nats::connect(system.rig.nats.url()).await.unwrap();
    for body in ["{\"policy\":\"nobody\"}", "{\"policy\":\"fresh-answers\"}"] {
        stranger
            .publish("togi.jobs.train", body.into())
            .await
            .unwrap();
    }
    stranger.flush().await.unwrap();
    wait_for_jobs(&process, 1).await;
    assert_eq!(served(&process).await, first);
    let job = jobs(&process).await.remove(0);
    let asked = GetJobRequest { job: job.id };
    let shown = process.trainer().get_job(asked).await.unwrap().into_inner();
    let request = shown.request.unwrap();
    assert_eq!(
        (request.policy.as_str(), request.base.as_str()),
        ("fresh-answers", BASE)
    );
    assert!(shown.evaluation.is_some_and(|evaluated| evaluated.passed));

    let js = async_nats::jetstream::new(stranger);
    let dead = js.get_stream(events::DEAD_STREAM).await.unwrap();
    let letter = dead.get_raw_message(1).await.unwrap();
    let letter: serde_json::Value = serde_json::from_slice(&letter.payload).unwrap();
    assert_eq!(letter["error"]["field"], "policy", "{letter}");

    // The same holds over gRPC, and a field that the policy sets must not be repeated.
    let asked = CreateJobRequest {
        policy: "fresh-answers".into(),
        idempotency_key: "once".into(),
        ..Default::default()
    };
    let id = process.create(asked.clone()).await;
    process.wait_for(&id, JobState::Succeeded).await;
    process.prepare_held_out("questions", RECORDS + 1).await;
    assert_eq!(process.create(asked.clone()).await, id, "the same for ever");
    let said_twice = CreateJobRequest {
        base: BASE.into(),
        ..asked
    };
    let refused = process.trainer().create_job(said_twice).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("base "), "{refused}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_time_that_was_missed_is_made_up_for_once() {
    let system = System::start();
    let process = system.process("one").await;
    let first = process.prepare_held_out("questions", RECORDS).await;
    let trigger = |schedule: &str| {
        Some(Trigger {
            schedule: schedule.into(),
            ..Default::default()
        })
    };
    let wrong = Policy {
        trigger: trigger("often"),
        ..policy()
    };
    let asked = ApplyPolicyRequest {
        policy: Some(wrong),
    };
    let refused = process.policies().apply_policy(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // A schedule that does not fire during the test.
    let rare = Policy {
        trigger: trigger("0 0 29 2 *"),
        ..policy()
    };
    apply(&process, rare).await;
    process.prepare_held_out("questions", RECORDS + 1).await;
    stays(&process, 0).await;
    process.stop().await;

    // As if the policy had been applied long ago and no api had run since the last scheduled day.
    let quiet = system.process_as("quiet", Role::Worker).await;
    let key = layout::revision(&layout::policy_revisions("fresh-answers"), 1);
    let mut version: serde_json::Value = quiet.store().get_json(&key).await.unwrap();
    version["since"] = "2023-01-01T00:00:00Z".into();
    let named = layout::name_revision("questions", 1);
    let mut revision: serde_json::Value = quiet.store().get_json(&named).await.unwrap();
    revision["time"] = "2023-01-02T00:00:00Z".into();
    for (key, value) in [(key, version), (named, revision)] {
        let bytes = serde_json::to_vec(&value).unwrap();
        quiet.store().put(&key, Bytes::from(bytes)).await.unwrap();
    }
    quiet.stop().await;
    let back = system.process("back").await;
    wait_for_jobs(&back, 1).await;
    assert_eq!(served(&back).await, first, "the second came after that day");
    stays(&back, 1).await;
    back.stop().await;
}
