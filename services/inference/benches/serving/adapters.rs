//! Publishes adapters as the trainer does, with random tensors instead of trained ones, and
//! promotes an alias to each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use togi_common::{Digest, Generation};
use togi_model::adapter::{self, CONFIG_FILE, Files, TENSORS_FILE};
use togi_model::{Config, Lora, LoraConfig, Target};
use togi_runtime::config::StoreConfig;
use togi_runtime::registry::adapter_manifest::{
    ADAPTER_MANIFEST_VERSION, AdapterFile, AdapterManifest, Identity,
};
use togi_runtime::{Store, layout};

use crate::deployment::Deployment;
use crate::prompts::{Prompts, alias};

/// Adapters that are made and published at once.
const AT_ONCE: usize = 4;
/// The longest wait until all are served.
const PATIENCE: Duration = Duration::from_secs(120);

/// The options of `serving adapters`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The deployment's object store
    #[arg(long)]
    store: String,
    /// The precision in which inference holds the base
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Aliases, each with an adapter
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Of the last aliases, how many get a second adapter, for `swaps`
    #[arg(long, default_value_t = 16)]
    second: usize,
    /// Rank of the adapters, on query_key_value
    #[arg(long, default_value_t = 8)]
    rank: usize,
}

/// Publishes the adapters, promotes the first of each alias, and waits until all are served.
pub(crate) async fn run(
    deployment: &Deployment,
    prompts: &Prompts,
    options: &Options,
) -> Result<()> {
    ensure!(options.second <= options.count, "--second is over --count");
    let store = StoreConfig {
        url: options.store.clone(),
        options: BTreeMap::new(),
        secrets: None,
    };
    let store = Store::open(&store).await.context("--store")?;
    let identity = Identity {
        base: deployment.served().await?.base_digest,
        base_precision: options.precision.clone(),
        tokenizer: prompts.tokenizer.digest().to_owned(),
        template: togi_tokens::prompt::template_digest().to_owned(),
        dataset: Digest::of("benchmark").into(),
        recipe: Digest::of("benchmark").to_string(),
    };
    let began = Instant::now();
    let firsts = (0..options.count).map(|number| (number, number, "first"));
    let seconds = (options.count - options.second..options.count)
        .map(|number| (number, options.count + number, "second"));
    let publish = |(number, seed, which): (usize, usize, &'static str)| {
        let (store, identity, config) = (&store, identity.clone(), prompts.config.clone());
        let rank = options.rank;
        async move {
            let making = move || files(&config, rank, seed as u64);
            let files = tokio::task::spawn_blocking(making).await??;
            let name = format!("{} {which}", alias(number));
            let generation = publish(store, identity, files, rank, name).await?;
            anyhow::Ok((which == "first").then(|| (alias(number), generation.to_string())))
        }
    };
    let published = futures::stream::iter(firsts.chain(seconds)).map(publish);
    let published: Vec<_> = published.buffer_unordered(AT_ONCE).try_collect().await?;
    let seconds = began.elapsed().as_secs_f64();
    let promoted: BTreeMap<String, String> = published.into_iter().flatten().collect();
    for (alias, generation) in &promoted {
        deployment.promote(alias, generation).await?;
    }
    let serving = until_served(deployment, &promoted);
    let serving = tokio::time::timeout(PATIENCE, serving).await;
    serving.with_context(|| format!("not all are served within {PATIENCE:?}"))??;
    let line = json!({
        "part": "adapters",
        "count": options.count,
        "publishing_s": seconds,
        "all_served_s": began.elapsed().as_secs_f64(),
    });
    println!("{line}");
    Ok(())
}

async fn until_served(deployment: &Deployment, all: &BTreeMap<String, String>) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let served = deployment.served().await?;
        if let Some(refused) = served.rejected.first() {
            anyhow::bail!("{} was refused: {}", refused.alias, refused.reason);
        }
        let served: BTreeMap<_, _> = served
            .adapters
            .into_iter()
            .map(|served| (served.alias, served.generation))
            .collect();
        if all
            .iter()
            .all(|(name, generation)| served.get(name) == Some(generation))
        {
            return Ok(());
        }
    }
}

/// Makes the files of an adapter whose B is not zero.
fn files(config: &Config, rank: usize, seed: u64) -> Result<Files> {
    let settings = LoraConfig {
        rank,
        alpha: 32.0,
        dropout: 0.0,
        targets: vec![Target::QueryKeyValue],
    };
    let mut lora = Lora::init(config, &settings, seed)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let views: Vec<_> = lora.views().collect();
    for view in views.iter().filter(|view| view.name.contains("lora_B")) {
        for value in &mut lora.values_mut()[view.range.clone()] {
            *value = rng.random_range(-0.01..0.01);
        }
    }
    Ok(adapter::to_files(&lora, "benchmark")?)
}

/// Publishes an adapter; its manifest comes last.
async fn publish(
    store: &Store,
    identity: Identity,
    files: Files,
    rank: usize,
    name: String,
) -> Result<Generation> {
    let generation = adapter::generation(&files, &togi_base::adapter::identity(&identity))?;
    let described = |bytes: &[u8]| AdapterFile {
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes).to_string(),
    };
    let manifest = AdapterManifest {
        schema_version: ADAPTER_MANIFEST_VERSION,
        generation,
        identity,
        rank: u32::try_from(rank)?,
        alpha: 32.0,
        target_modules: vec!["query_key_value".into()],
        files: BTreeMap::from([
            (CONFIG_FILE.to_owned(), described(&files.config)),
            (TENSORS_FILE.to_owned(), described(&files.tensors)),
        ]),
        job: "benchmark".into(),
        recipe_name: name,
        bit_exact: true,
    };
    for (name, bytes) in [(CONFIG_FILE, files.config), (TENSORS_FILE, files.tensors)] {
        store
            .put_new(&layout::adapter_file(generation, name), bytes)
            .await?;
    }
    let path = layout::adapter_manifest(generation);
    store.put_new_json(&path, &manifest).await?;
    Ok(generation)
}
