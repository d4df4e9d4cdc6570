//! Files from a Hugging Face hub, by its client and in its cache (`HF_ENDPOINT`, `HF_HOME`,
//! `HF_TOKEN`). A reference is resolved to a commit, and all files are of that commit.

use std::fmt;
use std::path::PathBuf;

use hf_hub::{HFClient, HFError};

use crate::error::{Class, Error, Result};

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// `hf://OWNER/NAME`
    Model,
    /// `hf://datasets/OWNER/NAME`
    Dataset,
}

/// A reference to a repository: `hf://[datasets/]OWNER/NAME[@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// Its kind.
    pub kind: RepoKind,
    /// Its owner.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Branch, tag or commit; the main branch if absent.
    pub revision: Option<String>,
}

impl HubRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// `InvalidArgument` of that field.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let wrong = || {
            let message = format!(
                "{field} must be hf://datasets/OWNER/NAME[@REVISION] or hf://OWNER/NAME[@REVISION]"
            );
            Error::invalid(field, message)
        };
        let rest = text.strip_prefix("hf://").ok_or_else(wrong)?;
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (rest, None),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (kind, owner, name) = match parts.as_slice() {
            ["datasets", owner, name] => (RepoKind::Dataset, *owner, *name),
            [owner, name] if *owner != "datasets" => (RepoKind::Model, *owner, *name),
            _ => return Err(wrong()),
        };
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with(['.', '-'])
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let revision_is_plain = revision.is_none_or(|revision| revision.split('/').all(plain));
        if !plain(owner) || !plain(name) || !revision_is_plain {
            return Err(wrong());
        }
        let revision = revision.map(str::to_owned);
        Ok(Self {
            kind,
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision,
        })
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.kind {
            RepoKind::Dataset => "hf://datasets/",
            RepoKind::Model => "hf://",
        };
        write!(f, "{prefix}{}/{}", self.owner, self.name)?;
        self.revision
            .as_ref()
            .map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

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

/// A hub. Clones share the client.
#[derive(Clone, Debug)]
pub struct Hub {
    client: HFClient,
}

/// Asks for a repository's commit and file names; the two kinds have two types.
macro_rules! info {
    ($repository:expr, $revision:expr) => {{
        let info = $repository.info().maybe_revision($revision).send().await?;
        let names = info
            .siblings
            .unwrap_or_default()
            .into_iter()
            .map(|file| file.rfilename);
        (info.sha, names.collect::<Vec<String>>())
    }};
}

impl Hub {
    /// Returns the hub that the environment names: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`.
    ///
    /// # Errors
    /// `InvalidArgument` if the endpoint is no URL.
    pub fn from_environment() -> Result<Self> {
        crate::life::crypto::install_crypto();
        Ok(Self {
            client: HFClient::new().map_err(unusable)?,
        })
    }

    /// Returns a hub at an endpoint, with its own cache folder.
    ///
    /// # Errors
    /// `InvalidArgument` if the endpoint is no URL.
    pub fn at(endpoint: &str, cache: impl Into<PathBuf>) -> Result<Self> {
        crate::life::crypto::install_crypto();
        let builder = HFClient::builder()
            .endpoint(endpoint)
            .cache_dir(cache.into());
        Ok(Self {
            client: builder.build().map_err(unusable)?,
        })
    }

    /// Returns the wanted files of a repository, from the cache if they are there.
    ///
    /// # Errors
    /// `NotFound` if there is no such repository, revision or file; `FailedPrecondition` if the hub
    /// wants a token; `Unavailable`.
    pub async fn snapshot(
        &self,
        reference: &HubRef,
        wanted: impl Fn(&str) -> bool + Send,
    ) -> Result<Snapshot> {
        let failed = |error: HFError| failed(reference, error);
        let (commit, names) = self.info(reference).await.map_err(failed)?;
        let commit = commit
            .ok_or_else(|| Error::unavailable(format!("the hub names no commit of {reference}")))?;
        let mut names: Vec<String> = names
            .into_iter()
            .filter(|name| is_inside(name) && wanted(name))
            .collect();
        names.sort();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            // By commit, because a branch may move meanwhile.
            let path = self
                .download(reference, &commit, &name)
                .await
                .map_err(failed)?;
            files.push((name, path));
        }
        let folder = match files.first() {
            Some((name, path)) => path
                .ancestors()
                .nth(name.split('/').count())
                .map(PathBuf::from),
            None => None,
        };
        let Some(folder) = folder else {
            return Err(Error::not_found(format!(
                "{reference} has none of the wanted files"
            )));
        };
        Ok(Snapshot {
            commit,
            folder,
            files,
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
        let revision = Some(revision.unwrap_or_else(|| "main".to_owned()));
        Ok(match kind {
            RepoKind::Model => info!(self.client.model(owner, name), revision),
            RepoKind::Dataset => info!(self.client.dataset(owner, name), revision),
        })
    }

    async fn download(
        &self,
        reference: &HubRef,
        commit: &str,
        file: &str,
    ) -> std::result::Result<PathBuf, HFError> {
        let HubRef {
            kind, owner, name, ..
        } = reference.clone();
        match kind {
            RepoKind::Model => {
                let repository = self.client.model(owner, name);
                repository
                    .download_file()
                    .filename(file)
                    .revision(commit)
                    .send()
                    .await
            }
            RepoKind::Dataset => {
                let repository = self.client.dataset(owner, name);
                repository
                    .download_file()
                    .filename(file)
                    .revision(commit)
                    .send()
                    .await
            }
        }
    }
}

/// A hub's file names are not trusted: none may lead out of the commit's folder.
fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn unusable(error: HFError) -> Error {
    Error::invalid("HF_ENDPOINT", "the hub's endpoint cannot be used").with_source(error)
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
    Error::new(class, format!("{reference} {what}")).with_source(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_follow_the_table() {
        let good = [
            (
                "hf://datasets/kunishou/databricks-dolly-15k-ja",
                RepoKind::Dataset,
                None,
            ),
            (
                "hf://rinna/japanese-gpt-neox-3.6b@main",
                RepoKind::Model,
                Some("main"),
            ),
            ("hf://o/n@refs/pr/1", RepoKind::Model, Some("refs/pr/1")),
        ];
        for (text, kind, revision) in good {
            let reference = HubRef::parse("hub", text).unwrap();
            assert_eq!(
                (reference.kind, reference.revision.as_deref()),
                (kind, revision)
            );
            assert_eq!(reference.to_string(), text);
        }
        let bad = [
            "",
            "hf://",
            "hf://x",
            "https://x/y",
            "hf://datasets/x",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/..",
            "hf://a/b@",
            "hf://a/b@../../c",
            "hf://a/b@x y",
            "hf://a/b?c",
        ];
        for text in bad {
            assert_eq!(
                HubRef::parse("hub", text).unwrap_err().field(),
                Some("hub"),
                "{text}"
            );
        }
    }

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
