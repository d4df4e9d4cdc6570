//! Files from a Hugging Face hub, by its client and in its cache. A reference is resolved to a
//! commit, and all files are of that commit. What the cache has needs no hub.

mod cache;
mod environment;
mod publish;
mod reference;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::progress::Progress;
use hf_hub::repository::{HFRepository, RepoType};
use hf_hub::{HFClient, HFError};
use tokio::task::spawn_blocking;

use crate::error::{Class, Error, Result};
use cache::{Cached, Names, RepoCache, is_commit};
pub use environment::{Access, Environment};
pub use publish::{Published, Upload, Visibility};
pub use reference::{HubRef, RepoKind};
use watch::Watch;

/// The branch of a reference without a revision.
const MAIN: &str = "main";
/// The longest silence of an upload, in which a whole file may be one request.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(900);
/// Most missing files that a message names.
const NAMED: usize = 3;

/// A commit's files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit of the reference.
    pub commit: String,
    /// The commit's folder in the cache.
    pub folder: PathBuf,
    /// The requested files, ordered by name: name in the repository, and path.
    pub files: Vec<(String, PathBuf)>,
}

/// A commit that a reference was resolved to, with the names of its files.
#[derive(Debug)]
pub struct Resolved {
    /// The commit.
    pub commit: String,
    /// Its files, ordered.
    pub names: Vec<String>,
    /// Whether the commit may have other files.
    pub known: Known,
    reference: HubRef,
    reach: Reach,
}

/// How much is known about a commit's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The names are all that the commit has.
    Whole,
    /// The names are those in the cache.
    InCache,
}

/// Whether missing files can be downloaded.
#[derive(Debug)]
enum Reach {
    /// The hub was asked, or did not have to be yet.
    Near,
    /// It must not be asked.
    Forbidden,
    /// It did not answer.
    Away(Error),
}

/// A hub. Clones share the client.
#[derive(Clone, Debug)]
pub struct Hub {
    client: HFClient,
    environment: Environment,
}

/// Asks for a repository's commit and file names; the two kinds have two types.
macro_rules! info {
    ($repository:expr, $revision:expr) => {{
        let info = $repository.info().revision($revision).send().await?;
        let names = info
            .siblings
            .unwrap_or_default()
            .into_iter()
            .map(|file| file.rfilename);
        (info.sha, names.collect::<Vec<String>>())
    }};
}

impl Hub {
    /// Returns the hub that the process's environment names.
    ///
    /// # Errors
    /// `InvalidArgument` if the endpoint is no URL.
    pub fn from_environment() -> Result<Self> {
        Self::new(Environment::of_process())
    }

    /// Returns the hub of an environment.
    ///
    /// # Errors
    /// `InvalidArgument` if the endpoint is no URL.
    pub fn new(environment: Environment) -> Result<Self> {
        crate::life::crypto::install_crypto();
        // Without a token the client would look for one itself, in other places than
        // huggingface_hub does. One that cannot be a header is never sent.
        let token = environment.token.clone().unwrap_or_else(|| "\n".to_owned());
        let builder = HFClient::builder()
            .endpoint(&environment.endpoint)
            .cache_dir(&environment.cache)
            .token(token);
        Ok(Self {
            client: builder.build().map_err(unusable)?,
            environment,
        })
    }

    /// Returns the commit of a reference and the names of its files. The hub is not asked for a
    /// commit by its id whose files the cache knows, or has in a folder that is `enough`; nor if
    /// the environment forbids it. A hub that fails is replaced by the cache.
    ///
    /// # Errors
    /// `NotFound` if there is no such repository or revision; `FailedPrecondition` if the hub wants
    /// a token, or must not be asked and the cache has nothing; `Unavailable`.
    pub async fn resolve(
        &self,
        reference: &HubRef,
        enough: impl Fn(&Path) -> bool + Send + 'static,
    ) -> Result<Resolved> {
        let revision = reference.revision.as_deref().unwrap_or(MAIN);
        let cache = RepoCache::new(&self.environment.cache, reference);
        let (pinned, wanted) = (is_commit(revision), revision.to_owned());
        let found = spawn_blocking(move || {
            let cached = cache.find(&wanted)?;
            let alone = match &cached.names {
                Names::OfCommit(_) => pinned,
                Names::InCache(_) => pinned && enough(&cache.snapshot(&cached.commit)),
            };
            Some((cached, alone))
        });
        let found = found
            .await
            .map_err(|error| Error::internal(format!("reading the hub's cache: {error}")))?;
        let resolved = |cached, reach| Resolved::cached(reference, cached, reach);
        match (found, self.environment.access) {
            (Some((cached, true)), Access::Online) => Ok(resolved(cached, Reach::Near)),
            (Some((cached, _)), Access::Offline) => Ok(resolved(cached, Reach::Forbidden)),
            (None, Access::Offline) => Err(self.not_cached(reference).await),
            (found, Access::Online) => match (self.ask(reference).await, found) {
                (Ok(resolved), _) => Ok(resolved),
                (Err(error), Some((cached, _))) if error.field() != Some(REVISION) => {
                    tracing::warn!(
                        %reference,
                        commit = cached.commit,
                        error = error.chain(),
                        "the hub does not answer; what its cache has is used"
                    );
                    Ok(resolved(cached, Reach::Away(error)))
                }
                (Err(error), _) => Err(error),
            },
        }
    }

    /// Returns files of a commit, from the cache if they are there.
    ///
    /// # Errors
    /// `NotFound` if no files are wanted or the hub lacks one; `FailedPrecondition` naming those
    /// that the cache lacks, if the hub must not be asked; `Unavailable`.
    pub async fn fetch(&self, resolved: &Resolved, wanted: &[String]) -> Result<Snapshot> {
        let Resolved {
            reference, commit, ..
        } = resolved;
        if wanted.is_empty() {
            let message = format!("{reference} has none of the wanted files");
            return Err(Error::not_found(message));
        }
        let cache = RepoCache::new(&self.environment.cache, reference);
        let folder = cache.snapshot(commit);
        let missing = wanted.iter().filter(|name| !folder.join(name).exists());
        let missing: Vec<&String> = missing.collect();
        if !missing.is_empty() {
            resolved.may_download(&missing, &folder)?;
        }
        for name in missing {
            self.download(reference, commit, name).await?;
        }
        if let (Reach::Near, Known::Whole) = (&resolved.reach, resolved.known) {
            let revision = reference.revision.as_deref().unwrap_or(MAIN);
            let kept = cache
                .keep_names(commit, &resolved.names)
                .and_then(|()| cache.keep_reference(revision, commit));
            if let Err(error) = kept {
                // The files are there; only a start without the hub would miss the names.
                tracing::warn!(%reference, %error, "the hub's cache could not be written");
            }
        }
        let path = |name: &String| (name.clone(), folder.join(name));
        let mut files: Vec<_> = wanted.iter().map(path).collect();
        files.sort();
        Ok(Snapshot {
            commit: commit.clone(),
            folder,
            files,
        })
    }

    /// Commits files to a model's repository, which is created if it does not exist.
    ///
    /// # Errors
    /// `FailedPrecondition` if the hub must not be asked or wants another token; `InvalidArgument`
    /// if it is no model's repository or the hub refuses the files; `Unavailable`.
    pub async fn publish(&self, reference: &HubRef, upload: Upload) -> Result<Published> {
        if reference.kind != RepoKind::Model {
            let message = "an adapter goes into a model's repository: hf://OWNER/NAME";
            return Err(Error::invalid("repository", message));
        }
        if self.environment.access == Access::Offline {
            let message = format!(
                "{reference} cannot be written to: HF_HUB_OFFLINE forbids asking the hub; unset it"
            );
            return Err(Error::precondition(message));
        }
        let watch = Watch::new(UPLOAD_PATIENCE);
        let uploading = publish::upload(&self.client, reference, upload, watch.progress());
        let done = watch.over(uploading).await;
        done.ok_or_else(|| Error::unavailable(format!("the hub does not take {reference}")))?
    }

    async fn ask(&self, reference: &HubRef) -> Result<Resolved> {
        let watch = Watch::new(self.environment.listing_patience);
        let asked = watch.over(self.info(reference)).await;
        let (commit, names) = asked
            .ok_or_else(|| silent(reference, "HF_HUB_ETAG_TIMEOUT"))?
            .map_err(|error| failed(reference, error))?;
        let commit = commit
            .ok_or_else(|| Error::unavailable(format!("the hub names no commit of {reference}")))?;
        Ok(Resolved {
            reference: reference.clone(),
            names: ordered(names),
            commit,
            known: Known::Whole,
            reach: Reach::Near,
        })
    }

    async fn info(
        &self,
        reference: &HubRef,
    ) -> std::result::Result<(Option<String>, Vec<String>), HFError> {
        let HubRef {
            kind,
            owner,
            name,
            revision,
        } = reference.clone();
        // The revision is always named, because some hubs omit the commit otherwise.
        let revision = revision.unwrap_or_else(|| MAIN.to_owned());
        Ok(match kind {
            RepoKind::Model => info!(self.client.model(owner, name), revision),
            RepoKind::Dataset => info!(self.client.dataset(owner, name), revision),
        })
    }

    /// Downloads a file by its commit, because a branch may move meanwhile.
    async fn download(&self, reference: &HubRef, commit: &str, file: &str) -> Result<()> {
        let HubRef {
            kind, owner, name, ..
        } = reference.clone();
        let watch = Watch::new(self.environment.patience);
        let progress = watch.progress();
        let done = match kind {
            RepoKind::Model => {
                let repository = self.client.model(owner, name);
                let get = get(&repository, commit, file, progress);
                watch.over(get).await
            }
            RepoKind::Dataset => {
                let repository = self.client.dataset(owner, name);
                let get = get(&repository, commit, file, progress);
                watch.over(get).await
            }
        };
        let path = done
            .ok_or_else(|| silent(reference, "HF_HUB_DOWNLOAD_TIMEOUT"))?
            .map_err(|error| failed(reference, error))?;
        // The client keeps whatever a hub sends, the text of an error too.
        let (expected, found) = (watch.announced(), tokio::fs::metadata(&path).await?.len());
        if expected == 0 || expected == found {
            return Ok(());
        }
        if let Ok(blob) = tokio::fs::canonicalize(&path).await {
            tokio::fs::remove_file(blob).await?;
        }
        tokio::fs::remove_file(&path).await?;
        let message = format!(
            "the hub sent {found} bytes as {file} of {reference}, and had announced {expected}"
        );
        Err(Error::unavailable(message))
    }

    async fn not_cached(&self, reference: &HubRef) -> Error {
        let folder = self.environment.cache.display();
        let cache = RepoCache::new(&self.environment.cache, reference);
        let commits = spawn_blocking(move || cache.commits()).await;
        let commits = commits.unwrap_or_default();
        let others = match commits.as_slice() {
            [] => String::new(),
            some => format!(
                ", which has of it {} (name the commit behind @)",
                some[..some.len().min(NAMED)].join(", ")
            ),
        };
        Error::precondition(format!(
            "{reference} is not in the hub's cache {folder}{others}, and HF_HUB_OFFLINE forbids \
             asking the hub: unset it, or fill the cache with `togi fetch` or `hf download`"
        ))
    }
}

impl Resolved {
    fn cached(reference: &HubRef, cached: Cached, reach: Reach) -> Self {
        let (names, known) = match cached.names {
            Names::OfCommit(names) => (names, Known::Whole),
            Names::InCache(names) => (names, Known::InCache),
        };
        Self {
            reference: reference.clone(),
            commit: cached.commit,
            names: ordered(names),
            known,
            reach,
        }
    }

    /// Refuses files that the cache lacks, unless the hub can be asked for them. The names may be
    /// the commit's or any that a caller expects.
    ///
    /// # Errors
    /// `FailedPrecondition` if the hub must not be asked; the hub's, if it did not answer.
    pub fn may_download(&self, missing: &[&String], folder: &Path) -> Result<()> {
        let mut named: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
        let more = named.len().saturating_sub(NAMED);
        named.truncate(NAMED);
        let mut named = named.join(", ");
        if more > 0 {
            named += &format!(" and {more} more");
        }
        let (reference, folder) = (&self.reference, folder.display());
        let incomplete = format!("{reference} is not complete in {folder}: {named} missing");
        match &self.reach {
            Reach::Near => Ok(()),
            Reach::Forbidden => Err(Error::precondition(format!(
                "{incomplete}, and HF_HUB_OFFLINE forbids asking the hub: unset it, or fetch again"
            ))),
            Reach::Away(error) => {
                let message = format!("{incomplete}, and {}", error.message());
                let refused = Error::new(error.class(), message);
                Err(match std::error::Error::source(error) {
                    Some(cause) => refused.with_source(cause.to_string()),
                    None => refused,
                })
            }
        }
    }
}

async fn get<T: RepoType>(
    repository: &HFRepository<T>,
    commit: &str,
    file: &str,
    progress: Progress,
) -> std::result::Result<PathBuf, HFError> {
    let download = repository
        .download_file()
        .filename(file)
        .revision(commit)
        .progress(progress);
    download.send().await
}

/// Orders the names that stay inside the commit's folder: a hub's file names are not trusted.
fn ordered(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| is_inside(name));
    names.sort();
    names
}

fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The field of an error about a revision, which no cache replaces.
const REVISION: &str = "revision";

fn unusable(error: HFError) -> Error {
    Error::invalid(
        "HF_ENDPOINT",
        "the endpoint of the hub in HF_ENDPOINT cannot be used",
    )
    .with_source(error)
}

fn silent(reference: &HubRef, limit: &str) -> Error {
    let message = format!("the hub said nothing about {reference} for as long as {limit} allows");
    Error::unavailable(message)
}

fn failed(reference: &HubRef, error: HFError) -> Error {
    let (class, what) = match &error {
        HFError::RepoNotFound { .. } => (Class::NotFound, "does not exist on the hub"),
        HFError::RevisionNotFound { .. } => (Class::NotFound, "has no such revision"),
        HFError::EntryNotFound { .. } => (Class::NotFound, "has no such file"),
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => (
            Class::FailedPrecondition,
            "may not be read with this token (HF_TOKEN)",
        ),
        HFError::RateLimited { .. } => (Class::ResourceExhausted, "is asked for too often"),
        _ => (Class::Unavailable, "cannot be read from the hub now"),
    };
    let cause = crate::error::scrub(&error.to_string());
    let is_revision = matches!(error, HFError::RevisionNotFound { .. });
    let error = Error::new(class, format!("{reference} {what}")).with_source(cause);
    if is_revision {
        return error.with_field(REVISION);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_inside() {
        for good in ["config.json", "a/b.json", "..a"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "../x", "/etc/passwd", "a/../b", "a//b", "a\\b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }
}
