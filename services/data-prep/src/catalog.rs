//! The committed data sets in the object store, and their names. Everything is read from the store
//! at each request.

use jiff::Timestamp;
use togi_common::{DatasetId, canonical};
use togi_runtime::layout::{self, validate_name};
use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::{Class, Store};
use togi_tokens::manifest::DatasetManifest;
use tracing::warn;

use crate::error::{Error, Result};

/// Most bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A data set as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By its digest.
    Id(DatasetId),
    /// By a name, whose newest revision counts.
    Name(String),
}

impl Asked {
    /// Reads a digest or a name.
    ///
    /// # Errors
    /// `InvalidArgument` with the field `dataset` if the text is neither.
    pub fn from_text(text: &str) -> togi_runtime::Result<Self> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        validate_name("dataset", text)?;
        Ok(Self::Name(text.to_owned()))
    }
}

/// A data set with the name in its request.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name; empty if the request has the digest.
    pub name: String,
    /// The name's revision; 0 without a name.
    pub revision: u64,
    /// When the revision was made.
    pub create_time: Option<Timestamp>,
    /// How the records of the revision were read, in words; empty if it is not known.
    pub read_as: String,
    /// The content.
    pub manifest: DatasetManifest,
}

/// Reads and names data sets.
#[derive(Clone, Debug)]
pub struct Catalog {
    store: Store,
}

impl Catalog {
    /// Reads from a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Returns a data set by its digest, or the newest revision of a name.
    ///
    /// # Errors
    /// `NotFound` with the field if it does not exist.
    pub async fn get(&self, dataset: &Asked) -> Result<Named> {
        match dataset {
            Asked::Id(id) => Ok(Named {
                name: String::new(),
                revision: 0,
                create_time: None,
                read_as: String::new(),
                manifest: self.manifest(*id).await?,
            }),
            Asked::Name(name) => match self.newest(name).await? {
                Some(named) => Ok(named),
                None => {
                    let near = self.store.nearest(&layout::names(), name).await;
                    let message = format!("no data set {name:?}{near}");
                    Err(Error::not_found("dataset", message))
                }
            },
        }
    }

    /// Returns the manifest of a data set.
    ///
    /// # Errors
    /// `NotFound` with the field; `DataLoss` if the manifest cannot be read.
    pub async fn manifest(&self, id: DatasetId) -> Result<DatasetManifest> {
        let path = layout::dataset_manifest(id);
        let bytes = match self.store.get_bounded(&path, MAX_MANIFEST_BYTES).await {
            Err(error) if error.class() == Class::NotFound => return Err(absent(&id.to_string())),
            found => found?,
        };
        let manifest = DatasetManifest::of(&bytes, id).map_err(|e| {
            let text = format!("the manifest of {id} cannot be read: {e}");
            togi_runtime::Error::data_loss(text).with_source(e)
        })?;
        Ok(manifest)
    }

    /// Returns a page of the names after `after`, in their order, and whether more follow. A name
    /// whose newest revision cannot be read is left out and logged, so that it hides no other.
    pub async fn page(&self, after: &str, most: usize) -> Result<(Vec<Named>, bool)> {
        let mut names = self.store.list_dirs(&layout::names()).await?;
        names.retain(|name| name.as_str() > after);
        let mut found = Vec::new();
        for name in &names {
            if found.len() == most {
                return Ok((found, true));
            }
            match self.newest(name).await {
                Ok(newest) => found.extend(newest),
                Err(error) if error.class().retryable() => return Err(error),
                Err(error) => {
                    let error = togi_runtime::Error::from(error);
                    warn!(name, error = error.chain(), "data set cannot be read");
                }
            }
        }
        Ok((found, false))
    }

    async fn newest(&self, name: &str) -> Result<Option<Named>> {
        let Some((revision, at)) = self.revision(name).await? else {
            return Ok(None);
        };
        let manifest = self.manifest(at.dataset).await?;
        let create_time = at.time.parse().ok();
        Ok(Some(Named {
            name: name.to_owned(),
            revision,
            create_time,
            read_as: at.read_as,
            manifest,
        }))
    }

    async fn revision(&self, name: &str) -> Result<Option<(u64, NameRevision)>> {
        let newest = self
            .store
            .newest_revision(&layout::name_revisions(name))
            .await?;
        let Some((number, path)) = newest else {
            return Ok(None);
        };
        Ok(Some((number, self.store.get_json(&path).await?)))
    }

    /// Makes a job's data set the newest revision of its name, and returns the revision's number.
    /// If it is the newest already, or the job has made a revision `since` it was accepted, no
    /// revision is made: a second attempt must not undo a revision that followed the first.
    pub async fn name(&self, ours: &NameRevision, since: Timestamp) -> Result<u64> {
        let name = &ours.name;
        loop {
            let newest = self
                .store
                .newest_revision(&layout::name_revisions(name))
                .await?;
            let next = match newest {
                None => 1,
                Some((number, _)) => {
                    let current = self.readable(name, number).await?;
                    if current.is_some_and(|current| current.dataset == ours.dataset) {
                        return Ok(number);
                    }
                    match self.made_before(number, ours, since).await? {
                        Some(made) => return Ok(made),
                        None => number + 1,
                    }
                }
            };
            let revision = NameRevision {
                time: Timestamp::now().to_string(),
                ..ours.clone()
            };
            let bytes = canonical::json(&revision)
                .map_err(togi_runtime::Error::from)?
                .into();
            // If another preparation was faster, look again: it may have the same digest.
            if self
                .store
                .put_revision(&layout::name_revisions(name), next, bytes)
                .await?
            {
                return Ok(next);
            }
        }
    }

    /// Returns a revision, or nothing if it is damaged.
    async fn readable(&self, name: &str, revision: u64) -> Result<Option<NameRevision>> {
        let key = layout::name_revision(name, revision);
        match self.store.get_json(&key).await {
            Err(error) if error.class() == Class::DataLoss => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    /// Returns the revision that a job has made, searching back from the newest to the time when
    /// the job was accepted.
    async fn made_before(
        &self,
        newest: u64,
        ours: &NameRevision,
        since: Timestamp,
    ) -> Result<Option<u64>> {
        for number in (1..=newest).rev() {
            let Some(theirs) = self.readable(&ours.name, number).await? else {
                continue;
            };
            if theirs.job.is_some() && theirs.job == ours.job {
                return Ok(Some(number));
            }
            let time: Option<Timestamp> = theirs.time.parse().ok();
            if time.is_none_or(|time| time < since) {
                break;
            }
        }
        Ok(None)
    }
}

fn absent(dataset: &str) -> Error {
    Error::not_found("dataset", format!("no data set {dataset:?}"))
}
