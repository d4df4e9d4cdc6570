//! Prepares a local file into a store in a folder, and prints the time and the peak memory, which a
//! benchmark cannot see: `measure TOKENIZER RECORDS STORE [WORKERS] [COPIES]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use togi_data_prep::metrics::Metrics;
use togi_data_prep::pipeline::{OnBadRecord, Plan, local_files, prepare};
use togi_data_prep::progress::Progress;
use togi_data_prep::shards::{self, Form, write};
use togi_runtime::config::StoreConfig;
use togi_runtime::{Store, layout};
use togi_tokens::row::Settings;
use togi_tokens::tokenizer::Tokenizer;
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| {
        arguments
            .next()
            .with_context(|| format!("{what} is missing"))
    };
    let model = std::fs::read(next("TOKENIZER")?)?;
    let records = PathBuf::from(next("RECORDS")?);
    let folder = PathBuf::from(next("STORE")?);
    let workers = next("WORKERS").map_or(Ok(2), |text| text.parse())?;
    let copies = next("COPIES").map_or(Ok(1), |text| text.parse())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let store = runtime.block_on(Store::open(&StoreConfig::folder(&folder)?))?;
    let started = Instant::now();
    let tokenizer = Arc::new(Tokenizer::from_bytes(&model)?);
    let scratch = tempfile::tempdir()?;
    let (stop, progress) = (CancellationToken::new(), Progress::default());
    let metrics = Metrics::new(&togi_runtime::telemetry::meter());
    let plan = Plan {
        tokenizer: tokenizer.clone(),
        settings: Settings::default(),
        shape: None,
        format: None,
        on_bad_record: OnBadRecord::Skip,
        workers,
        max_bytes: u64::MAX,
        scratch: scratch.path(),
        stop: &stop,
        progress: &progress,
        metrics: &metrics,
    };
    let prepared = prepare(&plan, local_files(vec![records; copies]))?;
    let tokenized = started.elapsed();
    let form = Form {
        tokenizer_digest: tokenizer.digest(),
        settings: &plan.settings,
        workers,
        folder: scratch.path(),
        stop: &stop,
    };
    let manifest = write(&form, &prepared)?;
    let written = started.elapsed();
    runtime.block_on(async {
        for part in &manifest.parts {
            let key = layout::dataset_file(manifest.dataset, &part.path);
            store
                .put_file(&key, &shards::local(scratch.path(), part))
                .await?;
        }
        let rejects = layout::dataset_rejects(manifest.dataset);
        store
            .put_file(&rejects, prepared.rejects.file.path())
            .await?;
        store
            .put_new(
                &layout::dataset_manifest(manifest.dataset),
                manifest.to_json(),
            )
            .await
    })?;
    let committed = started.elapsed();
    let bytes: u64 = manifest.parts.iter().map(|part| part.size_bytes).sum();
    let tokens: u64 = manifest.parts.iter().map(|part| part.tokens).sum();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default();
    eprintln!(
        "{} read, {} accepted, {tokens} tokens, {} parts of {bytes} bytes, digest {}\n\
         tokenized after {tokenized:.2?}, shards after {written:.2?}, committed after {committed:.2?}; {peak}",
        prepared.read,
        prepared.accepted,
        manifest.parts.len(),
        manifest.dataset,
    );
    Ok(())
}
