//! A base's files as a local folder. A `file://` folder is used in place, a hub's commit is in the
//! hub's cache, and an object store's files are copied once for each of their states.

use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use togi_common::Hasher;
use tokio::io::AsyncWriteExt as _;

use crate::config::BaseConfig;
use crate::error::{Error, Result, scrub};
use crate::store;
use crate::store::base_files::{is_enough, is_wanted, lacking};
use crate::store::hub::{Hub, HubRef, Known};

/// A base's files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Their folder.
    pub folder: PathBuf,
    /// Where they are from: a URL, with the commit if it is a hub's.
    pub origin: String,
}

/// Returns a base's files on this machine. Fetched files go below `cache`, or into the hub's cache.
///
/// # Errors
/// `NotFound` if the URL has no such files; `InvalidArgument` if it is wrong; those of
/// [`from_hub`]; `Unavailable`.
pub async fn materialize(base: &BaseConfig, cache: &Path) -> Result<Local> {
    if base.url.starts_with("hf://") {
        let reference = HubRef::parse("url", &base.url)?;
        let hub = Hub::from_environment()?;
        return from_hub(&hub, &reference).await;
    }
    let shown = scrub(&base.url);
    if let Some(path) = local_folder(&base.url)? {
        if !tokio::fs::try_exists(path.join("config.json")).await? {
            return Err(Error::not_found(format!("{shown} has no config.json")));
        }
        return Ok(Local {
            folder: path,
            origin: base.url.clone(),
        });
    }
    let store = store::connect(&base.url, &base.options)?;
    let objects: Vec<ObjectMeta> = store.list_with_delimiter(None).await?.objects;
    let names: Vec<String> = objects.iter().filter_map(name_of).collect();
    let wanted = |meta: &ObjectMeta| name_of(meta).is_some_and(|name| is_wanted(&name, &names));
    let objects: Vec<ObjectMeta> = objects.into_iter().filter(wanted).collect();
    if !objects
        .iter()
        .any(|meta| meta.location.filename() == Some("config.json"))
    {
        return Err(Error::not_found(format!("{shown} has no config.json")));
    }
    let folder = cache.join(state_digest(&base.url, &objects));
    copy(&*store, &objects, &folder).await?;
    Ok(Local {
        folder,
        origin: shown,
    })
}

/// Returns the commit's folder of a base on a hub.
///
/// # Errors
/// As [`Hub::resolve`] and [`Hub::fetch`].
pub async fn from_hub(hub: &Hub, reference: &HubRef) -> Result<Local> {
    let resolved = hub.resolve(reference, is_enough).await?;
    let names = resolved.names.iter();
    let wanted: Vec<String> = names
        .filter(|name| is_wanted(name, &resolved.names))
        .cloned()
        .collect();
    let snapshot = hub.fetch(&resolved, &wanted).await?;
    if resolved.known == Known::InCache
        && let Some(file) = lacking(&snapshot.folder)
    {
        resolved.may_download(&[&file], &snapshot.folder)?;
    }
    let pinned = HubRef {
        revision: Some(snapshot.commit),
        ..reference.clone()
    };
    Ok(Local {
        folder: snapshot.folder,
        origin: pinned.to_string(),
    })
}

/// Returns the folder of a `file://` URL, and nothing for another store.
///
/// # Errors
/// `InvalidArgument` if it is no URL.
pub fn local_folder(url: &str) -> Result<Option<PathBuf>> {
    let wrong = || {
        Error::invalid(
            "url",
            format!("\"{}\" is not a URL such as file:///folder", scrub(url)),
        )
    };
    let parsed = url::Url::parse(url).map_err(|_| wrong())?;
    if parsed.scheme() != "file" {
        return Ok(None);
    }
    Ok(Some(parsed.to_file_path().map_err(|()| wrong())?))
}

fn name_of(meta: &ObjectMeta) -> Option<String> {
    meta.location.filename().map(str::to_owned)
}

/// Names the folder of the source's state. A copy stays valid until the source changes.
fn state_digest(url: &str, objects: &[ObjectMeta]) -> String {
    let mut hash = Hasher::new();
    hash.update(url);
    for meta in objects {
        let version = meta
            .e_tag
            .clone()
            .unwrap_or_else(|| meta.last_modified.to_string());
        hash.update(format!("\n{} {} {version}", meta.location, meta.size));
    }
    hash.finish().to_string()[..32].to_owned()
}

async fn copy(store: &dyn ObjectStore, objects: &[ObjectMeta], folder: &Path) -> Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    // Collected first, because with a closure in the stream the future would not be `Send`.
    let copies: Vec<_> = objects
        .iter()
        .map(|meta| copy_one(store, meta, folder))
        .collect();
    futures::stream::iter(copies)
        .buffer_unordered(4)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

async fn copy_one(store: &dyn ObjectStore, meta: &ObjectMeta, folder: &Path) -> Result<()> {
    let Some(name) = meta.location.filename() else {
        return Ok(());
    };
    let target = folder.join(name);
    let there = tokio::fs::metadata(&target)
        .await
        .is_ok_and(|found| found.len() == meta.size);
    if there {
        return Ok(());
    }
    // Another process may copy the same file, so each writes its own and renames it when complete.
    let part = folder.join(format!(".{name}.{}", store::random_hex()?));
    let mut file = tokio::fs::File::create(&part).await?;
    let mut pieces = store.get(&meta.location).await?.into_stream();
    while let Some(piece) = pieces.try_next().await? {
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    file.sync_all().await?;
    drop(file);
    tokio::fs::rename(&part, &target).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn base(url: &str) -> BaseConfig {
        BaseConfig {
            url: url.to_owned(),
            options: BTreeMap::new(),
            precision: None,
        }
    }

    #[tokio::test]
    async fn a_local_folder_is_used_in_place_and_must_have_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let url = url::Url::from_directory_path(folder.path()).unwrap();
        let error = materialize(&base(url.as_str()), Path::new("/nowhere"))
            .await
            .unwrap_err();
        assert_eq!(error.class(), crate::error::Class::NotFound);
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let found = materialize(&base(url.as_str()), Path::new("/nowhere"))
            .await
            .unwrap();
        assert_eq!(
            found.folder.canonicalize().unwrap(),
            folder.path().canonicalize().unwrap()
        );
    }

    #[tokio::test]
    async fn objects_are_copied_whole_and_once() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let names = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "README.md",
        ];
        for name in names {
            std::fs::write(source.path().join(name), name).unwrap();
        }
        let url = url::Url::from_directory_path(source.path()).unwrap();
        let store = store::connect(url.as_str(), &BTreeMap::new()).unwrap();
        let objects = store.list_with_delimiter(None).await.unwrap().objects;
        let all: Vec<String> = objects.iter().filter_map(name_of).collect();
        let wanted: Vec<ObjectMeta> = objects
            .into_iter()
            .filter(|meta| is_wanted(&name_of(meta).unwrap(), &all))
            .collect();
        copy(&*store, &wanted, target.path()).await.unwrap();
        copy(&*store, &wanted, target.path()).await.unwrap();
        let mut found: Vec<String> = std::fs::read_dir(target.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, ["config.json", "model.safetensors"]);
        assert_eq!(
            std::fs::read(target.path().join("config.json")).unwrap(),
            b"config.json"
        );
    }
}
