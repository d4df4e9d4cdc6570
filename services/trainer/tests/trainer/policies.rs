//! Policies: retraining triggered by events.

use std::time::Instant;

use togi_proto::events::v1::DatasetReady;
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::{
    ApplyPolicyRequest, DeletePolicyRequest, Gate, GetPolicyRequest, ListAliasesRequest,
    ListJobsRequest, ListPoliciesRequest, Policy,
};
use togi_runtime::config::TelemetryConfig;
use togi_runtime::registry::revisions::AliasRevision;
use togi_runtime::{layout, telemetry};
use togi_testing::wait_until;
use togi_trainer::Role;
use tonic::Code;
use tracing::Instrument as _;

use crate::harness::{A_WHILE, Process, Shape, System};
use crate::inputs::{ALIAS, BASE, RECORDS, recipe};

pub(crate) fn policy() -> Policy {
    Policy {
        name: "fresh-answers".into(),
        dataset: "questions".into(),
        base: BASE.into(),
        recipe: Some(recipe(1)),
        alias: ALIAS.into(),
        // The losses of random weights are noise. Refusals are tested in `gate.rs`.
        gate: Some(Gate {
            loss_tolerance: Some(100.0),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) async fn jobs(process: &Process) -> Vec<Job> {
    process
        .trainer()
        .list_jobs(ListJobsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .jobs
}

pub(crate) async fn wait_for_jobs(process: &Process, count: usize) {
    wait_until("the policy's jobs have succeeded", async || {
        let jobs = jobs(process).await;
        jobs.len() == count && jobs.iter().all(|job| job.state() == JobState::Succeeded)
    })
    .await;
}

/// Checks that the number of jobs is unchanged after several listings and events.
pub(crate) async fn stays(process: &Process, count: usize) {
    let since = Instant::now();
    wait_until("a while has passed", async || {
        assert_eq!(jobs(process).await.len(), count);
        since.elapsed() > A_WHILE
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_trains_each_later_revision_once() {
    let system = System::start();
    let one = system.process("one").await;
    // A second api process receives the same events.
    let api = Shape {
        roles: vec![Role::Api],
        data_prep_port: None,
        ..system.shape()
    };
    let two = system.process_with("two", api).await;
    one.prepare_held_out("questions", RECORDS).await;
    let apply = ApplyPolicyRequest {
        policy: Some(policy()),
    };
    let applied = one
        .policies()
        .apply_policy(apply.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(applied.version, 1);
    assert_eq!(
        one.policies()
            .apply_policy(apply)
            .await
            .unwrap()
            .into_inner()
            .version,
        1
    );
    stays(&one, 0).await;

    let second = one.prepare_held_out("questions", RECORDS + 1).await;
    wait_for_jobs(&one, 1).await;
    // The event of the same revision arrives again.
    let ready = DatasetReady {
        dataset: second.clone(),
        name: "questions".into(),
        revision: 2,
        manifest: layout::dataset_manifest(second.parse().unwrap()).to_string(),
        rows: 7,
        ..DatasetReady::default()
    };
    two.context.bus.publish(ready).await.unwrap();
    stays(&two, 1).await;
    let third = one.prepare_held_out("questions", RECORDS + 2).await;
    assert_ne!(second, third);
    wait_for_jobs(&one, 2).await;
    let aliases = one
        .adapters()
        .list_aliases(ListAliasesRequest {})
        .await
        .unwrap()
        .into_inner()
        .aliases;
    assert_eq!(aliases[0].revision, 2);

    one.policies()
        .delete_policy(DeletePolicyRequest {
            name: "fresh-answers".into(),
        })
        .await
        .unwrap();
    one.prepare_held_out("questions", RECORDS + 3).await;
    stays(&one, 2).await;
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_came_while_nobody_followed_is_found_by_listing() {
    let system = System::start();
    let one = system.process("one").await;
    one.prepare_held_out("questions", RECORDS).await;
    one.policies()
        .apply_policy(ApplyPolicyRequest {
            policy: Some(policy()),
        })
        .await
        .unwrap();
    one.stop().await;
    // Only a worker runs: data-prep continues, but no api process follows the events.
    let quiet = system.process_as("quiet", Role::Worker).await;
    quiet.prepare_held_out("questions", RECORDS + 1).await;
    quiet.stop().await;
    let back = system.process("back").await;
    wait_for_jobs(&back, 1).await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_kept_changed_and_ended_and_wrong_ones_refused() {
    let system = System::start();
    let process = system.process_as("api", Role::Api).await;
    let mut client = process.policies();
    client
        .apply_policy(ApplyPolicyRequest {
            policy: Some(policy()),
        })
        .await
        .unwrap();
    let mut changed = policy();
    changed.recipe.as_mut().unwrap().seed = Some(1);
    let applied = client
        .apply_policy(ApplyPolicyRequest {
            policy: Some(changed),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(applied.version, 2);
    let get = || GetPolicyRequest {
        name: "fresh-answers".into(),
    };
    let found = client.get_policy(get()).await.unwrap().into_inner();
    assert_eq!(
        (found.version, found.policy.unwrap().recipe.unwrap().seed),
        (2, Some(1))
    );
    let listed = client
        .list_policies(ListPoliciesRequest {})
        .await
        .unwrap()
        .into_inner()
        .policies;
    assert_eq!(listed.len(), 1);
    let mirrored = process
        .context
        .bus
        .policies()
        .get("fresh-answers")
        .await
        .unwrap();
    assert!(mirrored.is_some_and(|entry| entry.value.is_some()));
    let delete = || DeletePolicyRequest {
        name: "fresh-answers".into(),
    };
    client.delete_policy(delete()).await.unwrap();
    assert_eq!(
        client.get_policy(get()).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        client.delete_policy(delete()).await.unwrap_err().code(),
        Code::NotFound
    );

    type Change = fn(&mut Policy);
    let wrong: [(Change, Code); 5] = [
        (|p| p.name = "a/b".into(), Code::InvalidArgument),
        (|p| p.dataset = String::new(), Code::InvalidArgument),
        (|p| p.alias = "..".into(), Code::InvalidArgument),
        (|p| p.base = "unknown".into(), Code::NotFound),
        (
            |p| p.recipe.as_mut().unwrap().epochs = Some(0),
            Code::InvalidArgument,
        ),
    ];
    for (change, code) in wrong {
        let mut wrong = policy();
        change(&mut wrong);
        let refused = client
            .apply_policy(ApplyPolicyRequest {
                policy: Some(wrong),
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_the_preparation_goes_on_to_the_promotion() {
    let _guard = telemetry::init(&TelemetryConfig::default(), "test").unwrap();
    let system = System::start();
    let process = system.process("one").await;
    process
        .policies()
        .apply_policy(ApplyPolicyRequest {
            policy: Some(policy()),
        })
        .await
        .unwrap();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let span = tracing::info_span!(target: "togi_test", "prepare");
    let span = telemetry::span_with_parent(span, &format!("00-{trace}-b7ad6b7169203331-01"));
    process
        .prepare_held_out("questions", RECORDS)
        .instrument(span)
        .await;
    wait_for_jobs(&process, 1).await;
    let job = jobs(&process).await.remove(0);
    assert!(job.traceparent.contains(trace), "{}", job.traceparent);
    let alias: AliasRevision = process
        .store()
        .get_json(&layout::alias_revision(&ALIAS.parse().unwrap(), 1))
        .await
        .unwrap();
    assert!(
        alias
            .traceparent
            .is_some_and(|traceparent| traceparent.contains(trace))
    );
    process.stop().await;
}
