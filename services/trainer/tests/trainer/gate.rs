//! The gate before a promotion: its measurements, its refusals, and the adapter served afterwards.

use std::time::Instant;

use futures::StreamExt as _;
use togi_proto::events::v1::AdapterEvaluated;
use togi_proto::job::v1::{Job, JobState};
use togi_proto::trainer::v1::{CreateJobRequest, Gate, GetJobRequest, ListAliasesRequest};
use togi_runtime::bus::reader::Start;
use togi_runtime::events::{DEAD_STREAM, EventKind};
use togi_runtime::jobs::{Kind, job_id};
use togi_runtime::{Event, layout};
use togi_testing::wait_until;
use tonic::Code;

use crate::harness::{A_WHILE, Process, System};
use crate::inputs::{RECORDS, asked};

/// A question whose right answer a network of random weights never gives.
const NEVER: &str = "{\"instruction\":\"研ぎ石の1番はどこですか?\",\"output\":\"答えではない\"}\n";

fn gated(gate: Gate) -> CreateJobRequest {
    CreateJobRequest {
        gate: Some(gate),
        ..asked("questions", 1)
    }
}

/// A gate that accepts any held-out loss.
fn lenient() -> Gate {
    Gate {
        loss_tolerance: Some(1e6),
        ..Gate::default()
    }
}

async fn ended(process: &Process, asked: CreateJobRequest) -> (Job, AdapterEvaluated) {
    let id = process.create(asked).await;
    let (_, job) = process.watch(&id, 1, usize::MAX).await;
    let asked = GetJobRequest { job: id };
    let answer = process.trainer().get_job(asked).await.unwrap();
    (job, answer.into_inner().evaluation.unwrap())
}

/// Ends a lenient job whose earlier attempt stored `decided` and died before acting on it. Returns
/// the job, its evaluation and the stored decision.
async fn ended_decided(
    process: &Process,
    decided: AdapterEvaluated,
) -> (Job, AdapterEvaluated, AdapterEvaluated) {
    let key = "decided before";
    let id = job_id(Kind::Train, key).unwrap();
    let decided = AdapterEvaluated {
        job: id.to_string(),
        ..decided
    };
    let path = layout::job_evaluation(&id);
    process.store().put_new_json(&path, &decided).await.unwrap();
    let again = CreateJobRequest {
        idempotency_key: key.into(),
        ..gated(lenient())
    };
    let (job, evaluated) = ended(process, again).await;
    (job, evaluated, decided)
}

/// Checks that the job succeeded and reports why its adapter was not promoted.
fn is_refused(job: &Job, evaluated: &AdapterEvaluated) {
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
    assert_eq!(
        (&job.result, &job.refusal),
        (&evaluated.generation, &evaluated.reason)
    );
    assert!(!job.refusal.is_empty() && job.error.is_none(), "{job:?}");
}

async fn served(process: &Process) -> Option<String> {
    let listed = process.adapters().list_aliases(ListAliasesRequest {}).await;
    let aliases = listed.unwrap().into_inner().aliases;
    aliases.into_iter().next().map(|alias| alias.generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_measured_beside_the_one_that_is_served() {
    let system = System::start();
    let process = system.process("one").await;
    let first = process.prepare_held_out("questions", RECORDS).await;
    let (job, alone) = ended(&process, gated(lenient())).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
    assert!(job.refusal.is_empty(), "{job:?}");
    assert!(alone.passed && alone.serving.is_empty(), "{alone:?}");
    assert!(alone.reason.contains("no generation is served yet"));
    let [held] = &alone.held_out[..] else {
        panic!("{alone:?}")
    };
    assert_eq!((held.dataset.as_str(), held.rows), (first.as_str(), 5));
    assert!(held.loss > Some(0.0), "{held:?}");
    assert!(held.serving_loss.is_none(), "{held:?}");
    assert_eq!(served(&process).await.as_deref(), Some(job.result.as_str()));

    // An identical job makes the same generation, which is compared with itself.
    let (_, same) = ended(&process, gated(Gate::default())).await;
    assert!(same.passed, "{same:?}");
    assert_eq!(same.serving, same.generation);
    assert_eq!(same.held_out[0].serving_loss, held.loss);

    // A new revision is measured on its own held-out rows and on those of the served adapter.
    let second = process.prepare_held_out("questions", RECORDS + 10).await;
    let questions = process.upload(NEVER).await;
    let gate = Gate {
        questions,
        max_new_tokens: Some(3),
        ..lenient()
    };
    let mut said = process
        .context
        .bus
        .events(&[EventKind::AdapterEvaluated], Start::New)
        .await
        .unwrap();
    let (job, beside) = ended(&process, gated(gate)).await;
    assert!(beside.passed, "{beside:?}");
    assert_eq!(beside.serving, alone.generation);
    let datasets: Vec<_> = beside.held_out.iter().map(|held| &held.dataset).collect();
    assert_eq!(datasets, [&second, &first]);
    let old = &beside.held_out[1];
    assert_eq!(old.serving_loss, held.loss, "measured as before");
    assert_ne!(old.loss, held.loss);
    let answers = beside.answers.unwrap();
    assert_eq!(
        (answers.asked, answers.right, answers.serving_right),
        (1, 0, Some(0))
    );
    let received = said.next().await.unwrap();
    assert_eq!(received.event, Event::AdapterEvaluated(beside));
    assert_eq!(served(&process).await.as_deref(), Some(job.result.as_str()));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_is_published_but_not_promoted() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    let learned = CreateJobRequest {
        gate: Some(lenient()),
        ..asked("questions", 40)
    };
    let (good, _) = ended(&process, learned).await;
    // One epoch learns almost nothing.
    let gate = Gate {
        loss_tolerance: Some(0.0),
        ..Gate::default()
    };
    let (job, evaluated) = ended(&process, gated(gate)).await;
    assert!(!evaluated.passed);
    is_refused(&job, &evaluated);
    assert!(evaluated.reason.contains("above by more than 0"));
    assert_eq!(
        served(&process).await.as_deref(),
        Some(good.result.as_str())
    );
    let published = layout::adapter_manifest(evaluated.generation.parse().unwrap());
    assert!(process.store().exists(&published).await.unwrap());
    // The job's event carries the refusal, and nothing goes to the dead-letter stream.
    let ends = [EventKind::JobSucceeded, EventKind::JobFailed];
    let ends = process.context.bus.events(&ends, Start::All).await.unwrap();
    let mut ends = ends.map(|received| received.event);
    let said = loop {
        match ends.next().await.unwrap() {
            Event::JobSucceeded(ended) if ended.job == job.id => break ended,
            Event::JobSucceeded(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((said.result, said.refusal), (job.result, job.refusal));
    let stranger = async_nats::connect(system.rig.nats.url()).await.unwrap();
    let stranger = async_nats::jetstream::new(stranger);
    let dead = stranger.get_stream(DEAD_STREAM).await.unwrap();
    assert_eq!(dead.get_info().await.unwrap().state.messages, 0);

    // Too few right answers are refused, regardless of the served adapter.
    let gate = Gate {
        questions: process.upload(NEVER).await,
        least_right: Some(0.5),
        ..lenient()
    };
    let (job, evaluated) = ended(&process, gated(gate)).await;
    is_refused(&job, &evaluated);
    assert!(
        evaluated.reason.starts_with("0 of 1 questions"),
        "{evaluated:?}"
    );
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_whose_loss_rose_is_published_but_not_promoted() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let with = |max_loss_rise| {
        let mut asked = asked("questions", 10);
        let recipe = asked.recipe.get_or_insert_default();
        recipe.learning_rate = Some(3.0);
        recipe.max_loss_rise = max_loss_rise;
        asked
    };
    // The loss of a base of random weights is near its highest before the first step.
    let job = process.create(with(Some(0.0))).await;
    let (lines, job) = process.watch(&job, 1, usize::MAX).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
    let ends: Vec<f64> = lines.iter().map(|line| line.loss).collect();
    assert!(
        job.refusal.starts_with("the training diverged"),
        "{ends:?} {job:?}"
    );
    assert_eq!(served(&process).await, None);
    let published = layout::adapter_manifest(job.result.parse().unwrap());
    assert!(process.store().exists(&published).await.unwrap());

    // Another recipe may allow the rise, and makes the same adapter.
    let allowed = process.create(with(None)).await;
    let (_, allowed) = process.watch(&allowed, 1, usize::MAX).await;
    assert_eq!(
        (&allowed.result, allowed.refusal.as_str()),
        (&job.result, "")
    );
    assert_eq!(served(&process).await, Some(job.result));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_decision_stands() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    let (job, _) = ended(&process, gated(lenient())).await;
    let decided = AdapterEvaluated {
        generation: job.result.clone(),
        reason: "it was a Monday".into(),
        ..Default::default()
    };
    let (job, evaluated, decided) = ended_decided(&process, decided).await;
    assert_eq!(evaluated, decided);
    is_refused(&job, &decided);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_has_moved_since_the_measuring_is_left_alone() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    let (job, _) = ended(&process, gated(lenient())).await;
    let first = job.result;
    let mut other = gated(lenient());
    other.recipe.get_or_insert_default().seed = Some(77);
    let (other, _) = ended(&process, other).await;
    assert_ne!(other.result, first);
    assert_eq!(served(&process).await.as_ref(), Some(&other.result));
    // The decision was made when no adapter was served.
    let decided = AdapterEvaluated {
        passed: true,
        generation: first.clone(),
        ..Default::default()
    };
    let (job, evaluated, decided) = ended_decided(&process, decided).await;
    assert_eq!((job.state(), &job.result), (JobState::Succeeded, &first));
    assert_eq!(evaluated, decided);
    assert!(job.refusal.contains(&other.result), "{}", job.refusal);
    assert_eq!(served(&process).await, Some(other.result));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_that_is_stopped_is_done_by_the_next_worker() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    // Enough questions for the stop to arrive during the evaluation.
    let questions = process.upload(&NEVER.repeat(4000)).await;
    let published = [EventKind::AdapterPublished];
    let bus = &process.context.bus;
    let mut said = bus.events(&published, Start::New).await.unwrap();
    let asked = gated(Gate {
        questions,
        ..lenient()
    });
    let id = process.create(asked).await;
    said.next().await.unwrap();
    process.stop().await;
    let api = system.process_as("api", togi_trainer::Role::Api).await;
    let waiting = api.job(&id).await;
    assert_eq!((waiting.state(), waiting.attempts), (JobState::Queued, 0));
    api.stop().await;
    let back = system.process("back").await;
    let (_, job) = back.watch(&id, 1, usize::MAX).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
    let asked = GetJobRequest { job: id };
    let shown = back.trainer().get_job(asked).await.unwrap().into_inner();
    assert_eq!(shown.evaluation.unwrap().answers.unwrap().asked, 4000);
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_cannot_be_measured_is_refused_by_name() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    process.prepare_held_out("held-out", RECORDS).await;
    let empty = process.upload("\n").await;
    let table = [
        (
            gated(lenient()),
            Code::FailedPrecondition,
            "validation rows",
        ),
        (
            CreateJobRequest {
                dataset: "held-out".into(),
                ..gated(Gate {
                    questions: "a".repeat(64),
                    ..lenient()
                })
            },
            Code::NotFound,
            "gate.questions",
        ),
        (
            CreateJobRequest {
                dataset: "held-out".into(),
                ..gated(Gate {
                    questions: empty,
                    ..lenient()
                })
            },
            Code::InvalidArgument,
            "no question",
        ),
        (
            gated(Gate {
                loss_tolerance: Some(-1.0),
                ..lenient()
            }),
            Code::InvalidArgument,
            "gate.loss_tolerance",
        ),
    ];
    for (asked, code, says) in table {
        let refused = process.trainer().create_job(asked).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_another_base_is_not_compared() {
    use crate::inputs::{TOKENIZER, config, write_base};
    let system = System::start();
    let other = togi_model::Config {
        hidden_size: 32,
        ..config()
    };
    write_base(&system.base_folder("other"), &other, TOKENIZER);
    let process = system.process("one").await;
    process.prepare_held_out("questions", RECORDS).await;
    let (good, _) = ended(&process, gated(lenient())).await;
    let asked = CreateJobRequest {
        base: "other".into(),
        ..gated(lenient())
    };
    let (job, evaluated) = ended(&process, asked).await;
    is_refused(&job, &evaluated);
    assert!(evaluated.reason.contains("another base"), "{evaluated:?}");
    assert_eq!(evaluated.serving, good.result);
    assert_eq!(
        served(&process).await.as_deref(),
        Some(good.result.as_str())
    );
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_message_that_comes_again_means_what_it_meant_first() {
    let system = System::start();
    let process = system.process("one").await;
    let first = process.prepare_held_out("questions", RECORDS).await;
    let stranger = async_nats::connect(system.rig.nats.url()).await.unwrap();
    let long = asked("questions", 400);
    let body = serde_json::to_vec(&long).unwrap();
    let subject = "togi.jobs.train";
    stranger.publish(subject, body.into()).await.unwrap();
    stranger.flush().await.unwrap();
    let jobs = togi_runtime::Jobs::new(&process.context.bus, process.store());
    let mut id = String::new();
    wait_until("the message is a job", async || {
        let listed = jobs.list(Kind::Train).await.unwrap();
        id = listed
            .first()
            .map(|job| job.id.to_string())
            .unwrap_or_default();
        !id.is_empty()
    })
    .await;
    process.wait_for_step(&id, 1).await;
    process.stop().await;
    let back = system.process_as("api", togi_trainer::Role::Api).await;
    assert_ne!(back.prepare_held_out("questions", RECORDS + 1).await, first);
    back.stop().await;
    let back = system.process("back").await;
    back.wait_for_step(&id, 2).await;
    let since = Instant::now();
    wait_until("it goes on for a while", async || {
        assert_ne!(back.job(&id).await.state(), JobState::Failed);
        since.elapsed() > A_WHILE
    })
    .await;
    let id = id.parse().unwrap();
    let request = back.store().get(&layout::job_request(&id)).await.unwrap();
    assert!(String::from_utf8_lossy(&request).contains(&first));
    back.stop().await;
}
