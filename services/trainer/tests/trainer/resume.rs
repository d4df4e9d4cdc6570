//! Interrupted runs: the result equals that of an uninterrupted run, and no step is lost or
//! reported twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use togi_proto::job::v1::JobState;
use togi_proto::trainer::v1::ListAliasesRequest;
use togi_runtime::config::NatsConfig;
use togi_runtime::{Store, layout};
use togi_testing::wait_until;
use togi_trainer::Role;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Process, Shape, System};
use crate::inputs::{RECORDS, asked, numbers, steps};

/// Enough epochs for a run of about a second.
const LONG: u32 = 120;

/// Returns the generation of an uninterrupted run.
async fn undisturbed(process: &Process) -> String {
    let id = process.create(asked("questions", LONG)).await;
    process.wait_for(&id, JobState::Succeeded).await.result
}

async fn has_ended(store: &Store, id: &str) -> bool {
    store
        .exists(&layout::job_final(&id.parse().unwrap()))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_run_goes_on_elsewhere_to_the_same_generation_and_its_watcher_misses_no_step() {
    let system = System::start();
    let first = system.process("first").await;
    first.prepare("questions", RECORDS).await;
    let expected = undisturbed(&first).await;
    let id = first.create(asked("questions", LONG)).await;
    let (mut seen, _) = first.watch(&id, 1, 25).await;
    let store = first.store().clone();
    first.stop().await;
    assert!(!has_ended(&store, &id).await, "the run was interrupted");

    let second = system.process("second").await;
    let job = second.job(&id).await;
    assert_eq!(job.attempts, 0, "a hand-back is no failed attempt");
    let next = seen.len() as u64 + 1;
    let (rest, ended) = second.watch(&id, next, usize::MAX).await;
    assert_eq!(
        (ended.state(), ended.result.as_str()),
        (JobState::Succeeded, expected.as_str())
    );
    seen.extend(rest);
    assert_eq!(numbers(&seen), (1..=steps(LONG)).collect::<Vec<_>>());
    // A watcher that starts late reads the same losses.
    let (late, _) = second.watch(&id, 7, usize::MAX).await;
    let losses = |lines: &[togi_proto::trainer::v1::Step]| {
        lines.iter().map(|l| l.loss.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(losses(&late), losses(&seen[6..]));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_repeats_the_same_losses() {
    let system = System::start();
    let first = system.process("first").await;
    first.prepare("questions", RECORDS).await;
    let id = first.create(asked("questions", LONG)).await;
    let (undisturbed, _) = first.watch(&id, 1, usize::MAX).await;
    let id = first.create(asked("questions", LONG)).await;
    first.wait_for_step(&id, 25).await;
    let store = first.store().clone();
    // Killed, so that the steps since the last checkpoint are repeated.
    first.kill().await;
    assert!(!has_ended(&store, &id).await, "the run was interrupted");
    let second = system.process("second").await;
    let (resumed, ended) = second.watch(&id, 1, usize::MAX).await;
    assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
    let losses = |lines: &[togi_proto::trainer::v1::Step]| {
        lines.iter().map(|l| l.loss.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(losses(&resumed), losses(&undisturbed));
    assert_eq!(resumed.len() as u64, steps(LONG));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_job_is_taken_over_and_ends_with_the_same_generation() {
    let system = System::start();
    let api = system.process_as("api", Role::Api).await;
    api.prepare("questions", RECORDS).await;
    let worker = || Shape {
        roles: vec![Role::Worker],
        data_prep_port: None,
        data_prep: api.endpoint.clone(),
        ..system.shape()
    };
    let first = system.process_with("first", worker()).await;
    let expected = undisturbed(&api).await;
    let id = api.create(asked("questions", LONG)).await;
    api.wait_for_step(&id, 25).await;
    let before = api.job(&id).await;
    first.kill().await;
    assert!(
        !has_ended(api.store(), &id).await,
        "the run was interrupted"
    );
    let second = system.process_with("second", worker()).await;
    let (lines, ended) = api.watch(&id, 1, usize::MAX).await;
    assert_eq!(
        (ended.state(), ended.result.as_str()),
        (JobState::Succeeded, expected.as_str())
    );
    assert!(ended.epoch > before.epoch, "the fencing token rises");
    assert_eq!(numbers(&lines), (1..=steps(LONG)).collect::<Vec<_>>());
    second.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_cut_off_cannot_publish_when_it_comes_back() {
    let system = System::start();
    let api = system.process_as("api", Role::Api).await;
    api.prepare("questions", RECORDS).await;
    let cable = Cable::to(&system.rig.nats.url()).await;
    let worker = |nats| Shape {
        roles: vec![Role::Worker],
        data_prep_port: None,
        data_prep: api.endpoint.clone(),
        nats,
        ..system.shape()
    };
    let own = system.rig.nats.config();
    let cut_off = NatsConfig {
        url: cable.url.clone(),
        ..own.clone()
    };
    let first = system.process_with("first", worker(cut_off)).await;
    // Far longer than the lease, so that only the lease's end can stop the first worker.
    let mut request = asked("questions", 100_000);
    let recipe = request.recipe.as_mut().unwrap();
    recipe.max_steps = Some(2_000);
    recipe.checkpoint_every = Some(100);
    let id = api.create(request).await;
    api.wait_for_step(&id, 25).await;
    let before = api.job(&id).await;
    assert_eq!(before.worker, "first");
    cable.cut(true);
    let second = system.process_with("second", worker(own)).await;
    wait_until("the second worker has the job", async || {
        api.job(&id).await.worker == "second"
    })
    .await;
    cable.cut(false);
    let (lines, ended) = api.watch(&id, 1, usize::MAX).await;
    assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
    assert!(ended.epoch > before.epoch);
    assert_eq!(numbers(&lines), (1..=2_000).collect::<Vec<_>>());
    let aliases = api
        .adapters()
        .list_aliases(ListAliasesRequest {})
        .await
        .unwrap()
        .into_inner()
        .aliases;
    assert_eq!(
        (aliases[0].generation.as_str(), aliases[0].revision),
        (ended.result.as_str(), 1)
    );
    // The first worker takes jobs again.
    second.stop().await;
    let next = api.create(asked("questions", 1)).await;
    api.wait_for(&next, JobState::Succeeded).await;
    first.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_prep_may_go_away_in_the_middle() {
    let system = System::start();
    let rows = system.process_as("rows", Role::Api).await;
    rows.prepare("questions", RECORDS).await;
    // A budget of about one row, so that the loop always depends on the stream.
    let shape = Shape {
        data_prep_port: None,
        data_prep: rows.endpoint.clone(),
        prefetch_bytes: 512,
        ..system.shape()
    };
    let trainer = system.process_with("trainer", shape).await;
    let expected = undisturbed(&trainer).await;
    let id = trainer.create(asked("questions", LONG)).await;
    trainer.wait_for_step(&id, 25).await;
    let port = rows.endpoint.rsplit(':').next().unwrap().parse().unwrap();
    rows.kill().await;
    assert!(
        !has_ended(trainer.store(), &id).await,
        "the run was interrupted"
    );
    let again = Shape {
        roles: vec![Role::Api],
        data_prep_port: Some(port),
        ..system.shape()
    };
    let rows = system.process_with("rows", again).await;
    let job = trainer.wait_for(&id, JobState::Succeeded).await;
    assert_eq!((job.result, job.attempts), (expected, 0));
    trainer.stop().await;
    rows.stop().await;
}

/// A connection to NATS that can be cut and restored.
struct Cable {
    url: String,
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Cable {
    async fn to(url: &str) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = url.trim_start_matches("nats://").to_owned();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {
                        if is_cut.load(Ordering::Relaxed) {
                            connections.abort_all();
                        }
                        continue;
                    }
                };
                let (mut near, _) = accepted.unwrap();
                if is_cut.load(Ordering::Relaxed) {
                    continue;
                }
                let target = target.clone();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Cable { url, cut, task }
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}
