//! Reads manifests, revisions and requests for the objects that they name.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use togi_runtime::layout;
use togi_runtime::registry::{adapter_manifest, revisions};
use togi_tokens::DatasetManifest;

use crate::error::{Error, Result};

/// Returns the keys that manifests, policies and unfinished jobs' requests name, and the manifests'
/// own keys. `contents` gives their bytes, `keys` every key of the store.
///
/// # Errors
/// [`Error::Failed`] naming the first object that cannot be parsed or names a missing one.
pub(super) fn reached<'a>(
    contents: impl Iterator<Item = (&'a String, &'a Vec<u8>)>,
    keys: &BTreeSet<&str>,
    unfinished: &BTreeSet<&str>,
) -> Result<BTreeSet<String>> {
    let mut reached = BTreeSet::new();
    for (key, bytes) in contents {
        let parts: Vec<&str> = key.split('/').collect();
        let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder);
        let files: Vec<String> = match parts.as_slice() {
            ["datasets", ..] => dataset_files(key, bytes)?,
            ["adapters", ..] => parse::<adapter_manifest::AdapterManifest>(key, bytes)?
                .files
                .into_keys()
                .collect(),
            ["jobs", _, "checkpoints", ..] => {
                parse::<Files>(key, bytes)?.files.into_keys().collect()
            }
            ["names", ..] => {
                let revision: revisions::NameRevision = parse(key, bytes)?;
                let manifest = layout::dataset_manifest(revision.dataset);
                must_exist(key, manifest.as_ref(), keys)?;
                continue;
            }
            ["aliases", ..] => {
                let revision: revisions::AliasRevision = parse(key, bytes)?;
                let manifest = layout::adapter_manifest(revision.generation);
                must_exist(key, manifest.as_ref(), keys)?;
                continue;
            }
            ["policies", ..] => {
                if !is_replaced(key, keys) {
                    uploads(&parse(key, bytes)?, &mut reached);
                }
                continue;
            }
            ["jobs", job, "request.json"] => {
                let request = parse::<serde_json::Value>(key, bytes)?;
                if unfinished.contains(job) {
                    uploads(&request, &mut reached);
                }
                continue;
            }
            _ => continue,
        };
        reached.insert(key.clone());
        for name in files {
            let file = format!("{folder}/{name}");
            must_exist(key, &file, keys)?;
            reached.insert(file);
        }
    }
    Ok(reached)
}

/// Whether a later revision exists.
fn is_replaced(key: &str, keys: &BTreeSet<&str>) -> bool {
    let path = key.into();
    let folder = key.rsplit_once('/').map_or("", |(folder, _)| folder).into();
    layout::parse_revision(&path)
        .is_some_and(|n| keys.contains(layout::revision(&folder, n + 1).as_ref()))
}

fn dataset_files(key: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let manifest = DatasetManifest::from_json(bytes)
        .map_err(|error| not_understood(key, &error.to_string()))?;
    Ok(manifest
        .parts
        .into_iter()
        .map(|part| part.path)
        .chain([manifest.rejects.path])
        .collect())
}

/// The part of a checkpoint's manifest that names its files.
#[derive(Deserialize)]
struct Files {
    files: BTreeMap<String, serde_json::Value>,
}

/// Collects the uploads that a request names: every string in it that has the form of an upload's
/// id.
fn uploads(value: &serde_json::Value, reached: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::String(text) if layout::validate_digest("upload", text).is_ok() => {
            reached.insert(layout::upload(text).to_string());
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| uploads(value, reached)),
        serde_json::Value::Object(values) => {
            values.values().for_each(|value| uploads(value, reached))
        }
        _ => {}
    }
}

fn parse<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| not_understood(key, &error.to_string()))
}

fn must_exist(by: &str, key: &str, keys: &BTreeSet<&str>) -> Result<()> {
    if keys.contains(key) {
        Ok(())
    } else {
        Err(not_understood(
            by,
            &format!("it names {key}, which is not there"),
        ))
    }
}

fn not_understood(key: &str, why: &str) -> Error {
    Error::Failed(format!(
        "{key} cannot be relied on ({why}); nothing was deleted"
    ))
}
