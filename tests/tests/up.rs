//! `tools/up`: the deployed topology as processes. The whole pipeline runs, every metric in
//! dashboards and rules is exported, and the system stops cleanly.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use togi_testing::poll_until;
use togi_tests::{program, workspace};

/// Start of the processes' ports: `tools/up` takes ports from here and 10,000 above, all below the
/// system's ephemeral ports.
const PORTS: u16 = 21_600;

/// `tools/up` over a copy of its files, so that a system running in this checkout is not affected.
struct Up(tempfile::TempDir);

impl Up {
    fn run(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        let tools = workspace().join(".tools/bin");
        Command::new(self.0.path().join("tools/up"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", tools.display()))
            .env("TOGI_BIN", program().parent().unwrap())
            .env("TOGI_UP_PORT", PORTS.to_string())
            .output()
            .unwrap()
    }

    fn start() -> Self {
        let up = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(up.0.path().join("tools")).unwrap();
        for tool in ["tools/up", "tools/secrets"] {
            std::fs::copy(workspace().join(tool), up.0.path().join(tool)).unwrap();
        }
        let base = workspace().join("demo/base");
        let started = up.run(&["start", base.to_str().unwrap()]);
        assert!(started.status.success(), "{}", up.said(&started));
        up
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join(".togi/up")
    }

    fn said(&self, output: &Output) -> String {
        let log = |name: &str| std::fs::read_to_string(self.root().join(name)).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr);
        format!("{said}\n{}\n{}", log("trainer.log"), log("inference.log"))
    }

    fn togi(&self, arguments: &[&str]) {
        let output = Command::new(program())
            .arg("--config")
            .arg(self.root().join("togi.toml"))
            .args(arguments)
            .env_remove("TOGI_ENDPOINT")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "togi {arguments:?}: {}",
            self.said(&output)
        );
    }

    /// Returns the names of all exported metrics.
    fn metrics(&self) -> BTreeSet<String> {
        let samples = self.samples();
        let names = samples
            .iter()
            .filter_map(|line| line.split(['{', ' ']).next());
        names.map(str::to_owned).collect()
    }

    /// Returns the lines of all exported metrics.
    fn samples(&self) -> Vec<String> {
        let mut all = Vec::new();
        for port in [81, 82, 83] {
            let url = format!("http://127.0.0.1:{}/metrics", PORTS + port);
            let scraped = Command::new("curl")
                .args(["--silent", "--fail", &url])
                .output()
                .unwrap();
            assert!(scraped.status.success(), "{url}");
            let text = String::from_utf8(scraped.stdout).unwrap();
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            all.extend(samples.map(str::to_owned));
        }
        all
    }

    fn processes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.root()).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        files
            .filter(|file| file.extension().is_some_and(|extension| extension == "pid"))
            .map(|file| std::fs::read_to_string(file).unwrap().trim().to_owned())
            .collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.run(&["stop"]);
    }
}

/// A Prometheus with the deployed configuration and this machine's addresses; killed on drop.
struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// Starts Prometheus; `None` if it is not installed.
    fn start(folder: &Path) -> Option<Self> {
        let runs = Command::new("prometheus").arg("--version").output();
        if !runs.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: the scrape by a real Prometheus; there is no `prometheus` on PATH");
            return None;
        }
        let deployed = |name: &str| workspace().join("deploy").join(name);
        let mut text = std::fs::read_to_string(deployed("prometheus.yaml")).unwrap();
        for (target, port) in [
            ("data-prep:7681", 81),
            ("trainer:7682", 82),
            ("inference:7683", 83),
        ] {
            assert!(text.contains(target), "{text}");
            text = text.replace(target, &format!("127.0.0.1:{}", PORTS + port));
        }
        // The default interval would only slow the test.
        let text = text.replace("15s", "1s");
        std::fs::write(folder.join("prometheus.yaml"), text).unwrap();
        std::fs::copy(deployed("rules.yaml"), folder.join("rules.yaml")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let log = std::fs::File::create(folder.join("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg("--config.file=prometheus.yaml")
            .arg("--storage.tsdb.path=prometheus")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self {
            child,
            url: format!("http://{address}/api/v1"),
        })
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let answer = Command::new("curl")
            .args(["--silent", "--fail", &format!("{}/{path}", self.url)])
            .output()
            .unwrap();
        serde_json::from_slice(&answer.stdout).ok()
    }

    /// Checks that all three services are scraped and their metrics can be queried.
    fn sees_everything(&self) {
        poll_until("Prometheus to see the three services", || {
            let seen = self.ask("targets")?;
            let targets = seen["data"]["activeTargets"].as_array()?;
            let up = targets.iter().filter(|target| target["health"] == "up");
            (up.count() == 3).then_some(())
        });
        poll_until("the jobs that run", || {
            let seen = self.ask("query?query=togi_trainer_jobs_running")?;
            let result = seen["data"]["result"].as_array()?;
            (!result.is_empty()).then_some(())
        });
        let rules = self.ask("rules").unwrap();
        let groups = rules["data"]["groups"].as_array().unwrap();
        assert!(!groups.is_empty(), "{rules}");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the metrics named in a dashboard's or rule's text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let prefixes = ["togi_", "gen_ai_server_", "messaging_", "rpc_server_"];
    // These labels have the form of metrics.
    let labels = [
        "togi_alias",
        "togi_generation",
        "togi_replica",
        "togi_outcome",
        "togi_tier",
        "messaging_destination_template",
    ];
    words
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .filter(|word| !labels.contains(word))
        .map(str::to_owned)
        .collect()
}

fn expressions(dashboard: &Value) -> String {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Checks that counters with alerts exist at zero from the start. Otherwise Prometheus would not
/// see the first event as an increase.
fn first_times_are_heard(samples: &[String]) {
    let waited_for = [
        [
            "messaging_client_sent_messages_total{",
            "\"togi.dead.train\"",
        ],
        [
            "messaging_client_sent_messages_total{",
            "\"togi.dead.prepare\"",
        ],
        ["togi_trainer_evaluations_total{", "\"refused\""],
        ["togi_inference_adapter_loads_total{", "\"rejected\""],
    ];
    for parts in waited_for {
        let is_there =
            |line: &&String| parts.iter().all(|part| line.contains(part)) && line.ends_with(" 0");
        let there = samples.iter().filter(is_there).count();
        assert_eq!(there, 1, "{parts:?}: {samples:#?}");
    }
}

/// Returns whether only a process with a GPU exports the metric.
fn is_of_a_card(name: &str) -> bool {
    name.starts_with("togi_trainer_gpu_")
}

#[test]
fn the_deployed_topology_trains_serves_shows_its_metrics_and_goes() {
    let up = Up::start();
    let processes = up.processes();
    assert_eq!(processes.len(), 5);
    let records = workspace().join("demo/records.jsonl");
    up.togi(&[
        "prepare",
        records.to_str().unwrap(),
        "--base",
        "demo",
        "--name",
        "small",
    ]);
    let recipe = up.0.path().join("recipe.toml");
    std::fs::write(
        &recipe,
        "name = \"three-steps\"\nbatch_size = 4\nmax_steps = 3\n",
    )
    .unwrap();
    let recipe = recipe.to_str().unwrap();
    up.togi(&[
        "train",
        "--base",
        "demo",
        "--dataset",
        "small",
        "--recipe",
        recipe,
        "--alias",
        "mine",
        "--watch",
    ]);
    poll_until("the adapter to be served", || {
        up.metrics()
            .contains("togi_inference_adapter_info")
            .then_some(())
    });
    up.togi(&[
        "generate",
        "--adapter",
        "mine",
        "--instruction",
        "富士山の高さは？",
    ]);
    poll_until("what was promoted", || {
        up.metrics()
            .contains("togi_trainer_alias_info")
            .then_some(())
    });

    first_times_are_heard(&up.samples());
    let exported = up.metrics();
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let dashboard = serde_json::from_str(&read("k8s/components/monitoring/togi.json")).unwrap();
    let rules: String = read("deploy/rules.yaml")
        .lines()
        .filter(|line| !line.contains("summary:"))
        .collect::<Vec<_>>()
        .join("\n");
    for text in [
        expressions(&dashboard),
        rules,
        read("k8s/components/keda/inference.yaml"),
    ] {
        let names = named(&text);
        assert!(!names.is_empty());
        let missing: Vec<_> = names
            .into_iter()
            .filter(|name| !exported.contains(name) && !is_of_a_card(name))
            .collect();
        assert_eq!(missing, Vec::<String>::new(), "exported are {exported:?}");
    }

    let folder = tempfile::tempdir().unwrap();
    if let Some(prometheus) = Prometheus::start(folder.path()) {
        prometheus.sees_everything();
    }

    let stopped = up.run(&["stop"]);
    assert!(stopped.status.success(), "{}", up.said(&stopped));
    assert!(!up.root().exists());
    for process in processes {
        assert!(
            !Path::new("/proc").join(&process).exists(),
            "process {process} still runs"
        );
    }
}
