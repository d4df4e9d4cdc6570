//! The service in this process, its clients, and records for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow_flight::flight_service_client::FlightServiceClient;
use serde_json::{Value, json};
use togi_data_prep::Config;
use togi_proto::dataprep::v1 as proto;
use togi_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use togi_proto::job::v1::{Job, JobState};
use togi_runtime::rpc::server::Services;
use togi_runtime::{Context, Tasks, layout, rpc};
use togi_testing::Rig;
use togi_tokens::manifest::DatasetManifest;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;

/// The service, its bus and its store.
pub(crate) struct System {
    pub(crate) rig: Rig,
    pub(crate) context: Context,
    pub(crate) tokenizer: String,
    endpoint: String,
    tasks: Tasks,
    serving: JoinHandle<togi_runtime::Result<()>>,
}

impl System {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with an edited configuration, and uploads the tokenizer.
    pub(crate) async fn start_with(edit: impl FnOnce(&mut Config)) -> Self {
        let rig = Rig::start();
        let context = rig.context("data-prep-test").await.unwrap();
        let mut config = Config::load(&[]).unwrap();
        config.prepare.workers = 2;
        edit(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut services = Services::new();
        let mut tasks = Tasks::new(&context.stopper);
        togi_data_prep::start(config, &context, &mut services, &mut tasks)
            .await
            .unwrap();
        let served = context.clone();
        let serving = tokio::spawn(async move {
            rpc::server::serve(listener, services, &served.readiness, &served.stopper).await
        });
        let mut system = Self {
            rig,
            context,
            tokenizer: String::new(),
            endpoint,
            tasks,
            serving,
        };
        system.tokenizer = system.upload(&tokenizer()).await;
        system
    }

    pub(crate) async fn client(&self) -> DataPrepServiceClient<rpc::client::Client> {
        DataPrepServiceClient::new(rpc::client::channel(&self.endpoint).unwrap())
    }

    pub(crate) async fn flight(&self) -> FlightServiceClient<rpc::client::Client> {
        FlightServiceClient::new(rpc::client::channel(&self.endpoint).unwrap())
    }

    pub(crate) async fn try_upload(&self, bytes: &[u8]) -> Result<String, Status> {
        let chunks: Vec<proto::UploadRequest> = bytes
            .chunks(100_000)
            .map(|chunk| proto::UploadRequest {
                chunk: chunk.to_vec(),
            })
            .collect();
        let answer = self
            .client()
            .await
            .upload(futures::stream::iter(chunks))
            .await?
            .into_inner();
        assert_eq!(answer.size_bytes, bytes.len() as u64);
        Ok(answer.upload)
    }

    pub(crate) async fn upload(&self, bytes: &[u8]) -> String {
        self.try_upload(bytes).await.unwrap()
    }

    /// The request for an upload's records with this system's tokenizer, changed by `edits`.
    pub(crate) fn request(&self, upload: &str, edits: Value) -> proto::PrepareRequest {
        let mut request = json!({
            "name": "songs",
            "records": {"upload": upload},
            "tokenizer": {"upload": self.tokenizer},
        });
        merge(&mut request, edits);
        serde_json::from_value(request).unwrap()
    }

    pub(crate) async fn submit(&self, request: proto::PrepareRequest) -> Result<Job, Status> {
        let answer = self.client().await.prepare(request).await?;
        Ok(answer.into_inner().job.unwrap())
    }

    /// Follows a job to its end.
    pub(crate) async fn end_of(&self, job: &str) -> Job {
        let request = proto::WatchPreparationRequest {
            job: job.to_owned(),
        };
        let mut updates = self
            .client()
            .await
            .watch_preparation(request)
            .await
            .unwrap()
            .into_inner();
        let mut last = None;
        while let Some(update) = updates.message().await.unwrap() {
            last = update.job;
        }
        last.unwrap()
    }

    pub(crate) async fn run(&self, request: proto::PrepareRequest) -> Job {
        let job = self.submit(request).await.unwrap();
        self.end_of(&job.id).await
    }

    /// Prepares records and returns the digest.
    pub(crate) async fn prepare(&self, records: &[u8], edits: Value) -> String {
        let upload = self.upload(records).await;
        let job = self.run(self.request(&upload, edits)).await;
        assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
        job.result
    }

    pub(crate) async fn manifest(&self, digest: &str) -> DatasetManifest {
        let bytes = self
            .context
            .store
            .get(&layout::dataset_manifest(digest.parse().unwrap()))
            .await
            .unwrap();
        DatasetManifest::from_json(&bytes).unwrap()
    }

    pub(crate) async fn rejects(&self, digest: &str) -> Vec<Value> {
        let bytes = self
            .context
            .store
            .get(&layout::dataset_rejects(digest.parse().unwrap()))
            .await
            .unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Every object below a folder of the store, with its bytes and the time of its last change.
    pub(crate) fn objects(
        &self,
        folder: &str,
    ) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
        let mut found = BTreeMap::new();
        gather(&self.rig.folder.path().join(folder), &mut found);
        found
    }

    pub(crate) async fn stop(self) {
        self.context.stopper.stop();
        self.serving.await.unwrap().unwrap();
        self.tasks.join().await.unwrap();
    }
}

fn gather(folder: &Path, found: &mut BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, found);
        } else {
            let changed = path.metadata().unwrap().modified().unwrap();
            found.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
        }
    }
}

fn merge(into: &mut Value, edits: Value) {
    match (into, edits) {
        (Value::Object(into), Value::Object(edits)) => {
            for (key, value) in edits {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, edits) => *into = edits,
    }
}

/// The tokenizer of the embedded base.
pub(crate) fn tokenizer() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/base/spiece.model");
    std::fs::read(path).unwrap()
}

/// The records of a range of numbers.
pub(crate) fn records(from: usize, to: usize) -> Vec<Value> {
    let record = |n: usize| {
        json!({
            "index": n.to_string(),
            "instruction": format!("{n}番の歌の題名を教えてください。"),
            "input": if n.is_multiple_of(3) { format!("歌は{n}番まで\nあります。") } else { String::new() },
            "output": format!("「{}」です。", "さくら".repeat(n % 7 + 1)),
            "category": if n.is_multiple_of(2) { "open_qa" } else { "closed_qa" },
        })
    };
    (from..to).map(record).collect()
}

pub(crate) fn lines(records: &[Value]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|record| format!("{record}\n").into_bytes())
        .collect()
}
