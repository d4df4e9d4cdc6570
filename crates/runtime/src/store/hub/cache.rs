//! A repository's part of the hub's cache, in the layout of huggingface_hub: `refs` says which
//! commit a branch was, `snapshots` has a commit's files, `trees` the names of all of its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::reference::{HubRef, RepoKind};
use crate::store::random_hex;

/// The version of a tree's file that huggingface_hub writes.
const TREE_VERSION: u64 = 1;

/// A commit in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) commit: String,
    pub(super) names: Names,
}

/// The file names of a commit in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// All files that the commit has; some may not be in the cache.
    OfCommit(Vec<String>),
    /// The files in the cache; the commit may have others.
    InCache(Vec<String>),
}

/// The folder of one repository.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    folder: PathBuf,
}

/// A tree's file, as huggingface_hub writes it.
#[derive(Deserialize)]
struct Tree {
    format_version: u64,
    files: Map<String, Value>,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, reference: &HubRef) -> Self {
        let kind = match reference.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        let HubRef { owner, name, .. } = reference;
        Self {
            folder: cache.join(format!("{kind}--{owner}--{name}")),
        }
    }

    /// Returns a commit's folder, which may not exist.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the commits of which the cache has files, ordered. A download by a commit's id
    /// leaves no branch that names it.
    pub(super) fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("snapshots"));
        let names = entries.into_iter().flatten().flatten();
        let mut commits: Vec<String> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_commit(name))
            .collect();
        commits.sort();
        commits
    }

    /// Finds the commit that a revision was when it was last seen, if any of it is there.
    pub(super) fn find(&self, revision: &str) -> Option<Cached> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let named = fs::read_to_string(self.reference(revision)).ok()?;
            Some(named.trim().to_owned()).filter(|commit| is_commit(commit))?
        };
        let snapshot = self.snapshot(&commit);
        if !snapshot.is_dir() {
            return None;
        }
        let names = match self.listed(&commit) {
            Some(names) => Names::OfCommit(names),
            None => Names::InCache(below(&snapshot)),
        };
        Some(Cached { commit, names })
    }

    /// Returns the names of all files of a commit, from huggingface_hub's listing or ours.
    fn listed(&self, commit: &str) -> Option<Vec<String>> {
        let theirs = fs::read(self.tree(commit)).ok();
        let theirs = theirs.and_then(|bytes| serde_json::from_slice::<Tree>(&bytes).ok());
        if let Some(tree) = theirs.filter(|tree| tree.format_version == TREE_VERSION) {
            return Some(tree.files.into_iter().map(|(name, _)| name).collect());
        }
        serde_json::from_slice(&fs::read(self.names(commit)).ok()?).ok()
    }

    /// Keeps the names of all files of a commit, for the time when the hub is not asked.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep_names(&self, commit: &str, names: &[String]) -> io::Result<()> {
        if self.listed(commit).is_some() {
            return Ok(());
        }
        write(&self.names(commit), json!(names).to_string().as_bytes())
    }

    /// Keeps which commit a branch or tag is. Rewritten only if it has moved, because a cache may
    /// be mounted read-only.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep_reference(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.reference(revision);
        if is_commit(revision) || fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        write(&path, commit.as_bytes())
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    fn tree(&self, commit: &str) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    /// Our own listing: theirs also has sizes and blob ids, which a list of names lacks.
    fn names(&self, commit: &str) -> PathBuf {
        let file = format!("{commit}.names.json");
        self.folder.join("trees").join(file)
    }
}

/// Whether a revision is a whole commit id, and so never moves.
pub(super) fn is_commit(revision: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    revision.len() == 40 && revision.bytes().all(is_digit)
}

/// Writes a whole file or none, so that a reader never sees a part.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let random = random_hex().map_err(io::Error::other)?;
    let part = folder.join(format!("{random}.tmp"));
    fs::write(&part, bytes)?;
    fs::rename(part, path)
}

/// Returns the names of the files below a folder, ordered. A link without its file is left out.
fn below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(inside) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder.join(&inside)) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Ok(found) = fs::metadata(entry.path()) else {
                continue;
            };
            let name = format!("{inside}{name}");
            if found.is_dir() {
                folders.push(format!("{name}/"));
            } else {
                names.push(name);
            }
        }
    }
    names.sort();
    names
}
