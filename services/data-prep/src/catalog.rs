//! The data sets in the object store: what is committed, and what it is called. Everything is read
//! from the store each time; nothing here outlives a request.

use jiff::Timestamp;
use togi_common::canonical;
use togi_proto::dataprep::v1 as proto;
use togi_runtime::layout::{self, validate_digest, validate_name};
use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::{Class, Error, Store};
use togi_tokens::manifest::{DatasetManifest, Split};
use togi_tokens::row::Learn;
use tracing::warn;

use crate::Result;

/// Most bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A data set under the name that it was asked for by.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name; empty where the data set was asked for by its digest.
    pub name: String,
    /// The name's revision; 0 where there is no name.
    pub revision: u64,
    /// When the revision was made.
    pub create_time: Option<Timestamp>,
    /// What the data set consists of.
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

    /// Returns a data set by digest, or by name its newest revision.
    ///
    /// # Errors
    /// `InvalidArgument` where `dataset` is neither, `NotFound` where there is none, each with the
    /// field.
    pub async fn get(&self, dataset: &str) -> Result<Named> {
        if validate_digest("dataset", dataset).is_ok() {
            let manifest = self.manifest(dataset).await?;
            return Ok(Named {
                name: String::new(),
                revision: 0,
                create_time: None,
                manifest,
            });
        }
        validate_name("dataset", dataset)?;
        self.newest(dataset).await?.ok_or_else(|| absent(dataset))
    }

    /// Returns the manifest of a digest.
    ///
    /// # Errors
    /// `NotFound` with the field, `DataLoss` where the manifest is none.
    pub async fn manifest(&self, digest: &str) -> Result<DatasetManifest> {
        let path = layout::dataset_manifest(digest);
        let bytes = match self.store.get_bounded(&path, MAX_MANIFEST_BYTES).await {
            Err(error) if error.class() == Class::NotFound => return Err(absent(digest)),
            found => found?,
        };
        let manifest = DatasetManifest::from_json(&bytes).map_err(|e| {
            Error::data_loss(format!("the manifest of {digest} cannot be read")).with_source(e)
        })?;
        if manifest.dataset != digest {
            return Err(Error::data_loss(format!(
                "the manifest of {digest} names another data set"
            )));
        }
        Ok(manifest)
    }

    /// Returns a page of names in their order, beginning behind `after`, and whether more follow. A
    /// name whose newest revision cannot be read is left out and logged: it hides no other.
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
                Err(error) => warn!(name, error = error.chain(), "data set cannot be read"),
            }
        }
        Ok((found, false))
    }

    async fn newest(&self, name: &str) -> Result<Option<Named>> {
        let Some((revision, at)) = self.revision(name).await? else {
            return Ok(None);
        };
        let manifest = self.manifest(&at.dataset).await?;
        let create_time = at.time.parse().ok();
        Ok(Some(Named {
            name: name.to_owned(),
            revision,
            create_time,
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

    /// Makes a job's digest its name's newest revision and returns its number. Unless it is that
    /// already, or the job has made it one `since` it was asked for: a second attempt must not
    /// take back what came after the first.
    pub async fn name(&self, ours: &NameRevision, since: Option<Timestamp>) -> Result<u64> {
        let name = &ours.name;
        loop {
            let newest = self
                .store
                .newest_revision(&layout::name_revisions(name))
                .await?;
            let next = match newest {
                None => 1,
                Some((number, _)) => {
                    let says = self.readable(name, number).await?;
                    if says.is_some_and(|says| says.dataset == ours.dataset) {
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
            let bytes = canonical::json(&revision)?.into();
            // Another preparation may have been faster, perhaps with this very digest: look again.
            if self
                .store
                .put_revision(&layout::name_revisions(name), next, bytes)
                .await?
            {
                return Ok(next);
            }
        }
    }

    /// Returns what a revision says; a broken one is gone over.
    async fn readable(&self, name: &str, revision: u64) -> Result<Option<NameRevision>> {
        let key = layout::name_revision(name, revision);
        match self.store.get_json(&key).await {
            Err(error) if error.class() == Class::DataLoss => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    /// Returns the revision that a job has made, looking back from the newest to the time when the
    /// job was asked for.
    async fn made_before(
        &self,
        newest: u64,
        ours: &NameRevision,
        since: Option<Timestamp>,
    ) -> Result<Option<u64>> {
        for number in (1..=newest).rev() {
            let Some(theirs) = self.readable(&ours.name, number).await? else {
                continue;
            };
            if theirs.job.is_some() && theirs.job == ours.job {
                return Ok(Some(number));
            }
            let time: Option<Timestamp> = theirs.time.parse().ok();
            if time < since {
                break;
            }
        }
        Ok(None)
    }
}

fn absent(dataset: &str) -> Error {
    Error::not_found(format!("no data set {dataset:?}")).with_field("dataset")
}

impl From<Named> for proto::Dataset {
    fn from(named: Named) -> Self {
        let Named {
            name,
            revision,
            create_time,
            manifest,
        } = named;
        Self {
            name,
            revision,
            rows: manifest.rows(Split::Train),
            validation_rows: manifest.rows(Split::Validation),
            tokens: manifest.tokens(Split::Train),
            records_read: manifest.records_read,
            rejected: manifest.rejected,
            max_length: manifest.settings.max_length,
            learn: match manifest.settings.learn {
                Learn::All => "all".to_owned(),
                Learn::Answer => "answer".to_owned(),
            },
            digest: manifest.dataset,
            tokenizer_digest: manifest.tokenizer_digest,
            template_digest: manifest.template_digest,
            create_time: create_time.map(|time| pbjson_types::Timestamp {
                seconds: time.as_second(),
                nanos: time.subsec_nanosecond(),
            }),
        }
    }
}
