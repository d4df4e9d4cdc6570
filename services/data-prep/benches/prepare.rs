//! Records per second from JSON Lines to shards, and rows per second over Flight on the loopback:
//! of Dolly-ja if `TOGI_DOLLY_JA` and `TOGI_TOKENIZERS` (a folder) name it and the models, else of
//! the embedded base's records.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::FlightServiceServer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::TryStreamExt;
use togi_data_prep::Config;
use togi_data_prep::metrics::Metrics;
use togi_data_prep::pipeline::{OnBadRecord, Plan, Prepared, local_files, prepare};
use togi_data_prep::progress::Progress;
use togi_data_prep::rpc::flight::Flight;
use togi_data_prep::shards::{self, Form};
use togi_runtime::config::StoreConfig;
use togi_runtime::{DatasetId, Readiness, Stopper, Store, layout, rpc, telemetry};
use togi_tokens::manifest::{DatasetManifest, Split};
use togi_tokens::row::Settings;
use togi_tokens::tokenizer::Tokenizer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Copies of the embedded records; enough to make the start of threads negligible.
const COPIES: usize = 50;

struct Work {
    tokenizer: Arc<Tokenizer>,
    files: Vec<PathBuf>,
    scratch: tempfile::TempDir,
    metrics: Metrics,
}

impl Work {
    fn new() -> Self {
        let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo"));
        let named = std::env::var_os("TOGI_DOLLY_JA").zip(std::env::var_os("TOGI_TOKENIZERS"));
        let (files, model) = match named {
            Some((records, models)) => (
                vec![PathBuf::from(records)],
                PathBuf::from(models).join("unigram-32k-bytefallback.model"),
            ),
            None => (
                vec![demo.join("records.jsonl"); COPIES],
                demo.join("base/spiece.model"),
            ),
        };
        let model = std::fs::read(model).expect("the tokenizer is there");
        Self {
            tokenizer: Arc::new(Tokenizer::from_bytes(&model).expect("it is a tokenizer")),
            files,
            scratch: tempfile::tempdir().expect("a scratch folder"),
            metrics: Metrics::new(&telemetry::meter()),
        }
    }

    fn run(&self) -> (Prepared, DatasetManifest) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let (stop, progress) = (CancellationToken::new(), Progress::default());
        let plan = Plan {
            tokenizer: self.tokenizer.clone(),
            settings: Settings::default(),
            shape: None,
            format: None,
            on_bad_record: OnBadRecord::Skip,
            workers,
            max_bytes: u64::MAX,
            scratch: self.scratch.path(),
            stop: &stop,
            progress: &progress,
            metrics: &self.metrics,
        };
        let prepared = prepare(&plan, local_files(self.files.clone())).expect("records");
        let form = Form {
            tokenizer_digest: self.tokenizer.digest(),
            settings: &plan.settings,
            workers,
            folder: self.scratch.path(),
            stop: &stop,
        };
        let manifest = shards::write(&form, &prepared).expect("shards");
        (prepared, manifest)
    }

    /// Commits a data set and serves it; returns the endpoint.
    async fn serve(&self, manifest: &DatasetManifest, store: Store, stopper: &Stopper) -> String {
        for part in &manifest.parts {
            let key = layout::dataset_file(manifest.dataset, &part.path);
            let local = shards::local(self.scratch.path(), part);
            store
                .put_file(&key, &local)
                .await
                .expect("a part is stored");
        }
        let key = layout::dataset_manifest(manifest.dataset);
        store
            .put_new(&key, manifest.to_json())
            .await
            .expect("the manifest is stored");
        let config = Config::load(&[]).expect("the default configuration");
        let mut services = rpc::server::Services::new();
        let flight = Flight::new(&store, config.flight, &self.metrics);
        services.add(FlightServiceServer::new(flight));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound port"));
        let stopper = stopper.clone();
        tokio::spawn(async move {
            rpc::server::serve(listener, services, &Readiness::new(), &stopper).await
        });
        endpoint
    }
}

async fn read(endpoint: &str, dataset: DatasetId) -> u64 {
    let channel = rpc::client::plain_channel(endpoint).expect("an endpoint");
    let mut client = FlightServiceClient::new(channel);
    let ticket = format!("{{\"dataset\":\"{dataset}\",\"shuffle\":true,\"seed\":\"7\"}}");
    let answer = client
        .do_get(Ticket {
            ticket: ticket.into(),
        })
        .await
        .expect("rows")
        .into_inner();
    let mut batches =
        FlightRecordBatchStream::new_from_flight_data(answer.map_err(FlightError::from));
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await.expect("a batch") {
        rows += batch.num_rows() as u64;
    }
    rows
}

fn benches(criterion: &mut Criterion) {
    let work = Work::new();
    let (_, manifest) = work.run();
    let mut group = criterion.benchmark_group("prepare");
    group
        .throughput(Throughput::Elements(manifest.records_read))
        .sample_size(10);
    group.bench_function("records", |bencher| bencher.iter(|| work.run()));
    group.finish();

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let stopper = Stopper::new();
    let endpoint = runtime.block_on(async {
        let config = StoreConfig::folder(folder.path()).expect("a folder's URL");
        let store = Store::open(&config).await.expect("a store");
        work.serve(&manifest, store, &stopper).await
    });
    let rows = manifest.rows(Split::Train);
    // Ids and labels have four bytes each; Arrow's overhead is not counted.
    let bytes = 8 * manifest.tokens(Split::Train);
    let mut group = criterion.benchmark_group("flight");
    for (name, throughput) in [
        ("rows", Throughput::Elements(rows)),
        ("bytes", Throughput::Bytes(bytes)),
    ] {
        group.throughput(throughput).sample_size(10);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let read = runtime.block_on(read(&endpoint, manifest.dataset));
                assert_eq!(read, rows);
            });
        });
    }
    group.finish();
    stopper.stop();
}

criterion_group!(all, benches);
criterion_main!(all);
