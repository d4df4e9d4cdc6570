//! `togi up` as a process: one owner per folder, a restarted child, a detected orphan, a clean
//! exit.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use togi::up_state::{UpState, start_time};

use super::world::{command, togi};
use togi_testing::poll_until;

/// A `togi up` that is stopped on drop.
struct Up {
    child: Child,
}

impl Drop for Up {
    fn drop(&mut self) {
        // SIGTERM instead of a kill, because its nats-server must stop too.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal("TERM", self.child.id());
        }
        let _ = self.child.wait();
    }
}

fn start(folder: &Path) -> (Up, UpState) {
    start_at(folder, "127.0.0.1:0")
}

fn start_at(folder: &Path, listen: &str) -> (Up, UpState) {
    let log = File::create(folder.join("up.log")).unwrap();
    let child = command(folder)
        .args([
            "up",
            "--listen",
            listen,
            "--admin",
            "127.0.0.1:0",
            "-o",
            "json",
        ])
        // The short lease lets another worker soon claim a killed worker's jobs.
        .env("TOGI_NATS__ACK_WAIT_SECONDS", "2")
        .stdin(Stdio::null())
        .stdout(File::create(folder.join("up.out")).unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let up = Up { child };
    // The process prints to standard output only when it is ready.
    let state = poll_until("togi up", || {
        serde_json::from_str(&std::fs::read_to_string(folder.join("up.out")).ok()?).ok()
    });
    (up, state)
}

fn signal(name: &str, pid: u32) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status()
        .unwrap();
    assert!(sent.success());
}

fn runs(pid: u32, since: &str) -> bool {
    start_time(pid).as_deref() == Some(since)
}

#[test]
fn an_interrupt_stops_everything_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, state) = start(folder.path());
    assert_eq!(
        UpState::of_running(&folder.path().join(".togi")).as_ref(),
        Some(&state)
    );
    signal("INT", up.child.id());
    let status = up.child.wait().unwrap();
    let log = std::fs::read_to_string(folder.path().join("up.log")).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        !runs(state.nats.pid, &state.nats.start_time),
        "nats-server has ended"
    );
    assert_eq!(UpState::read(&folder.path().join(".togi")), None);
    assert!(log.trim_end().ends_with("stopped"), "{log}");
    assert!(!log.contains(" WARN ") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_folder_and_a_port_have_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let (_up, state) = start(folder.path());
    let second = togi(
        folder.path(),
        &["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        "",
    )
    .expect(4);
    assert!(
        second.stderr.contains("another `togi up`") && second.stderr.contains(&state.endpoint),
        "{}",
        second.stderr
    );
    // Clients in the folder find the services without an option.
    togi(folder.path(), &["datasets", "list", "-o", "json"], "").expect(0);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let busy = togi(
        folder.path(),
        &["up", "--data", "other", "--listen", &address],
        "",
    )
    .expect(4);
    assert!(
        busy.stderr.contains(&format!(
            "cannot listen on {address}: another program listens there"
        )),
        "{}",
        busy.stderr
    );
}

#[test]
fn a_dead_nats_server_is_started_again_and_an_orphan_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(".togi");
    let (mut up, first) = start(folder.path());
    signal("KILL", first.nats.pid);
    let second = poll_until("the restart", || {
        UpState::read(&data).filter(|state| state.nats.pid != first.nats.pid)
    });
    assert_eq!(
        second.nats.url, first.nats.url,
        "clients find it where it was"
    );
    poll_until("jobs are answered again", || {
        let ran = togi(folder.path(), &["jobs", "list", "-o", "json"], "");
        (ran.code == 0).then_some(())
    });

    up.child.kill().unwrap();
    up.child.wait().unwrap();
    assert!(
        runs(second.nats.pid, &second.nats.start_time),
        "an orphan is left behind"
    );
    let (_up, third) = start(folder.path());
    assert!(
        !runs(second.nats.pid, &second.nats.start_time),
        "the orphan was stopped"
    );
    assert_ne!(third.nats.pid, second.nats.pid);
}

#[test]
fn a_stranger_with_the_noted_pid_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join(".togi");
    let (mut up, state) = start(folder.path());
    signal("INT", up.child.id());
    up.child.wait().unwrap();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = stranger.id();
    let mut noted = state;
    noted.nats.pid = pid;
    noted.nats.start_time = start_time(pid).unwrap();
    noted.write(&data).unwrap();
    let (_up, _) = start(folder.path());
    assert!(start_time(pid).is_some(), "it still runs");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_watch_goes_on_when_killed_services_come_back() {
    let folder = tempfile::tempdir().unwrap();
    // The port is fixed, so that the server can restart on it; it was free when checked.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let (mut up, _) = start_at(folder.path(), &port);
    let record = "{\"index\":\"0\",\"instruction\":\"色は？\",\"input\":\"\",\"output\":\"赤です。\",\"category\":\"qa\"}";
    std::fs::write(
        folder.path().join("records.jsonl"),
        format!("{record}\n").repeat(16),
    )
    .unwrap();
    let recipe = "epochs = 400\nbatch_size = 4\ncheckpoint_every = 20\n[lora]\nrank = 2\n";
    std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    togi(
        folder.path(),
        &["prepare", "records.jsonl", "--name", "mine"],
        "",
    )
    .expect(0);
    let watched = File::create(folder.path().join("watched")).unwrap();
    let mut watch = command(folder.path())
        .args([
            "train",
            "--recipe",
            "recipe.toml",
            "--dataset",
            "mine",
            "--alias",
            "mine",
        ])
        .args(["--watch", "-o", "json"])
        .stdout(watched)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let steps = || -> Vec<u64> {
        let text = std::fs::read_to_string(folder.path().join("watched")).unwrap();
        let updates = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        updates
            .filter_map(|update| update["step"]["step"].as_str()?.parse().ok())
            .collect()
    };
    poll_until("the first steps", || (steps().len() > 30).then_some(()));
    up.child.kill().unwrap();
    up.child.wait().unwrap();
    assert!(steps().len() < 1600, "killed in the middle");
    let (_up, _) = start_at(folder.path(), &port);
    let status = poll_until("the job's end", || watch.try_wait().unwrap());
    assert!(status.success());
    assert_eq!(steps(), (1..=1600).collect::<Vec<_>>(), "every step once");
}
