//! Running services, and the binary as their client.

use std::path::Path;

use togi::settings::Settings;
use togi::up::{self, Options, Running};
use togi_runtime::Stopper;

use super::world::{Ran, togi};

/// Running services and a folder for the client.
pub(super) struct Served {
    pub(super) running: Running,
    folder: tempfile::TempDir,
}

impl Served {
    pub(super) async fn start() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let running = up::start(
            Options::in_folder(folder.path().join("data")),
            Stopper::new(),
        )
        .await
        .unwrap();
        assert!(running.ready().await);
        assert_eq!(
            Settings::at(&running.state().endpoint).trainer,
            running.state().endpoint
        );
        Served { running, folder }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the binary, which finds the services through the data folder. Meanwhile the services
    /// run on their own threads.
    pub(super) async fn run(&self, words: &[&str], input: &str) -> Ran {
        let words: Vec<String> = words
            .iter()
            .chain(&["--data", "data"])
            .map(|&word| word.to_owned())
            .collect();
        let folder = self.path().to_owned();
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            togi(&folder, &words, &input)
        })
        .await
        .unwrap()
    }

    pub(super) async fn prepare(&self, name: &str) -> serde_json::Value {
        let words = [
            "prepare",
            "records.jsonl",
            "--name",
            name,
            "--learn",
            "answer",
            "-o",
            "json",
        ];
        self.run(&words, "").await.expect(0).json()
    }
}
