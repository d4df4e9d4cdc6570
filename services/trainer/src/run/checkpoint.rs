//! Checkpoints: everything that another worker needs to resume exactly, at a step boundary.
//!
//! `jobs/<job>/checkpoints/<step>/<fence>/` holds the trainable tensors (f32), the optimizer's
//! state and, written last, the manifest: the digests of both files, the position in the data and
//! the run's identity. A folder without a manifest is not a checkpoint. The fence in the key keeps
//! a stale worker's objects apart from its successor's.

use std::collections::BTreeMap;

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use togi_base::file;
use togi_common::Digest;
use togi_runtime::registry::adapter_manifest::{AdapterFile, Identity};
use togi_runtime::{Fence, JobId, Store, layout};
use tracing::warn;

use crate::error::{Error, Result};
use crate::learn::snapshot::{Progress, Snapshot};

/// Checkpoints kept per job, including the final one.
const KEPT: usize = 3;

const SCHEMA_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
const LORA: &str = "lora.f32";
const OPTIMIZER: &str = "adamw.bin";

#[derive(Serialize, Deserialize)]
struct Manifest {
    schema_version: u32,
    job: JobId,
    /// The serialized name stays `claim`, so that existing checkpoints remain readable.
    #[serde(rename = "claim")]
    fence: Fence,
    seed: u64,
    progress: Progress,
    identity: Identity,
    engine: String,
    /// Whether resuming here gives bit for bit the result of an uninterrupted run.
    #[serde(default)]
    bit_exact: bool,
    files: BTreeMap<String, AdapterFile>,
}

/// The run that a checkpoint belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// The job.
    pub job: JobId,
    /// The inputs of the run.
    pub identity: Identity,
    /// The recipe's seed.
    pub seed: u64,
}

/// Commits a checkpoint under the claim's fence and returns its manifest's key.
///
/// # Errors
/// The store's.
pub(crate) async fn save(
    store: &Store,
    owner: &Owner,
    fence: Fence,
    snapshot: &Snapshot,
) -> Result<Path> {
    let step = snapshot.progress.step;
    let mut files = BTreeMap::new();
    for (name, bytes) in [(LORA, &snapshot.lora), (OPTIMIZER, &snapshot.optimizer)] {
        let sha256 = Digest::of(bytes).to_string();
        files.insert(
            name.to_owned(),
            AdapterFile {
                bytes: bytes.len() as u64,
                sha256,
            },
        );
        store
            .put_new(
                &layout::checkpoint_file(&owner.job, step, fence, name),
                bytes.clone(),
            )
            .await?;
    }
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        job: owner.job.clone(),
        fence,
        seed: owner.seed,
        progress: snapshot.progress.clone(),
        identity: owner.identity.clone(),
        engine: engine(),
        bit_exact: togi_model::engine::BIT_EXACT,
        files,
    };
    let path = layout::checkpoint_manifest(&owner.job, step, fence);
    store.put_new_json(&path, &manifest).await?;
    Ok(path)
}

/// Returns the newest checkpoint whose files match its manifest, with the manifest's key; `None`
/// if there is no such checkpoint.
///
/// # Errors
/// [`Error::OtherRun`] if the job's checkpoints belong to other data, another base or another
/// recipe; the store's errors.
pub(crate) async fn newest(store: &Store, owner: &Owner) -> Result<Option<(Path, Snapshot)>> {
    for (step, fence, path) in committed(store, &owner.job).await?.into_iter().rev() {
        match read(store, owner, step, fence).await {
            Ok(snapshot) => return Ok(Some((path, snapshot))),
            Err(Error::Damaged { what, reason }) => {
                warn!(job = %owner.job, step, %fence, %what, %reason, "a damaged checkpoint is passed over");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Removes all but the newest checkpoints, oldest first. Manifests go first, so that a partly
/// removed folder is not a checkpoint.
///
/// # Errors
/// The store's.
pub(crate) async fn prune(store: &Store, job: &JobId) -> Result<()> {
    let committed = committed(store, job).await?;
    let surplus = committed.len().saturating_sub(KEPT);
    for (step, fence, manifest) in committed.into_iter().take(surplus) {
        store.delete(&manifest).await?;
        for name in [LORA, OPTIMIZER] {
            store
                .delete(&layout::checkpoint_file(job, step, fence, name))
                .await?;
        }
    }
    Ok(())
}

/// Returns the manifests of a job's checkpoints, oldest step first.
async fn committed(store: &Store, job: &JobId) -> Result<Vec<(u64, Fence, Path)>> {
    let objects = store.list(&layout::checkpoints(job)).await?;
    let mut committed: Vec<(u64, Fence, Path)> = objects
        .into_iter()
        .filter_map(|object| {
            object
                .location
                .filename()
                .filter(|name| *name == MANIFEST)?;
            let (step, fence) = layout::parse_checkpoint(&object.location)?;
            Some((step, fence, object.location))
        })
        .collect();
    committed.sort();
    Ok(committed)
}

async fn read(store: &Store, owner: &Owner, step: u64, fence: Fence) -> Result<Snapshot> {
    let path = layout::checkpoint_manifest(&owner.job, step, fence);
    let bytes = store.get(&path).await?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path.to_string(), error))?;
    if manifest.schema_version != SCHEMA_VERSION {
        return Err(Error::damaged(
            path.to_string(),
            format!("its schema version is {}", manifest.schema_version),
        ));
    }
    if (manifest.progress.step, manifest.fence) != (step, fence) {
        let reason = "its manifest is of another step or fence than its key";
        return Err(Error::damaged(path.to_string(), reason));
    }
    check_owner(&path, &manifest, owner)?;
    if manifest.engine != engine() {
        warn!(checkpoint = %path, made_by = %manifest.engine, "the checkpoint was made by another build: the result may differ in its last bits");
    }
    let file = async |name| {
        let key = layout::checkpoint_file(&owner.job, step, fence, name);
        let read = file::read(store, &key, name, manifest.files.get(name), u64::MAX).await;
        read.map_err(|error| Error::unreadable(key.as_ref(), error))
    };
    Ok(Snapshot {
        lora: file(LORA).await?,
        optimizer: file(OPTIMIZER).await?,
        progress: manifest.progress.clone(),
    })
}

fn check_owner(path: &Path, manifest: &Manifest, owner: &Owner) -> Result<()> {
    let (found, ours) = (&manifest.identity, &owner.identity);
    let other = [
        ("job", manifest.job != owner.job),
        ("seed", manifest.seed != owner.seed),
        ("base", found.base != ours.base),
        (
            "base precision",
            found.base_precision != ours.base_precision,
        ),
        ("tokenizer", found.tokenizer != ours.tokenizer),
        ("prompt template", found.template != ours.template),
        ("data set", found.dataset != ours.dataset),
        ("recipe", found.recipe != ours.recipe),
    ];
    match other.into_iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(Error::OtherRun {
            checkpoint: path.to_string(),
            what,
        }),
        None => Ok(()),
    }
}

/// Identifies the build and the kind of CPU, because results may differ in bits between them.
fn engine() -> String {
    format!(
        "togi {} {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use togi_testing::folder_store;

    use super::*;

    fn job() -> JobId {
        "job".parse().unwrap()
    }

    fn owner() -> Owner {
        let digest = |c: &str| c.repeat(64);
        Owner {
            job: job(),
            identity: Identity {
                base: digest("a"),
                base_precision: "f32".into(),
                tokenizer: digest("b"),
                template: digest("c"),
                dataset: digest("d").parse().unwrap(),
                recipe: digest("e"),
            },
            seed: 42,
        }
    }

    fn snapshot(step: u64) -> Snapshot {
        let progress = Progress {
            step,
            epoch: 1,
            offset: 3,
            tokens: 99,
            samples: 7,
            seconds: 0.5,
        };
        Snapshot {
            progress,
            lora: Bytes::from(vec![step as u8; 8]),
            optimizer: Bytes::from_static(b"state"),
        }
    }

    #[tokio::test]
    async fn the_newest_sound_checkpoint_is_resumed() {
        let (_folder, store) = folder_store().await;
        assert_eq!(newest(&store, &owner()).await.unwrap(), None);
        for step in [9, 10, 100] {
            save(&store, &owner(), Fence(5), &snapshot(step))
                .await
                .unwrap();
        }
        assert_eq!(
            newest(&store, &owner()).await.unwrap().unwrap().1,
            snapshot(100)
        );
        store
            .put(
                &layout::checkpoint_file(&job(), 100, Fence(5), OPTIMIZER),
                Bytes::from_static(b"State"),
            )
            .await
            .unwrap();
        assert_eq!(
            newest(&store, &owner()).await.unwrap().unwrap().1,
            snapshot(10)
        );
        store
            .delete(&layout::checkpoint_file(&job(), 10, Fence(5), LORA))
            .await
            .unwrap();
        assert_eq!(
            newest(&store, &owner()).await.unwrap().unwrap().1,
            snapshot(9)
        );
        store
            .delete(&layout::checkpoint_manifest(&job(), 9, Fence(5)))
            .await
            .unwrap();
        assert_eq!(newest(&store, &owner()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_newest_three_are_kept() {
        let (_folder, store) = folder_store().await;
        for step in 1..=5 {
            save(&store, &owner(), Fence(5), &snapshot(step))
                .await
                .unwrap();
            prune(&store, &job()).await.unwrap();
        }
        let steps: Vec<u64> = committed(&store, &job())
            .await
            .unwrap()
            .iter()
            .map(|(step, ..)| *step)
            .collect();
        assert_eq!(steps, [3, 4, 5]);
        assert_eq!(
            store
                .list(&layout::checkpoints(&job()))
                .await
                .unwrap()
                .len(),
            9
        );
    }

    #[tokio::test]
    async fn another_runs_checkpoint_is_refused_by_name() {
        let (_folder, store) = folder_store().await;
        save(&store, &owner(), Fence(5), &snapshot(1))
            .await
            .unwrap();
        let (mut other_data, mut other_precision) = (owner(), owner());
        other_data.identity.dataset = "f".repeat(64).parse().unwrap();
        other_precision.identity.base_precision = "nf4".into();
        for (other, part) in [
            (other_data, "data set"),
            (other_precision, "base precision"),
        ] {
            let error = newest(&store, &other).await.unwrap_err();
            assert!(
                matches!(error, Error::OtherRun { what, .. } if what == part),
                "{error}"
            );
        }
    }
}
