//! Makes a prepared data set visible: shards, then rejects, then the manifest (the commit point),
//! then the name, then the event. An earlier attempt, or another preparation of the same content,
//! may have done any step already.

use std::path::Path;

use togi_common::DatasetId;
use togi_runtime::jobs::Job;
use togi_runtime::registry::revisions::NameRevision;
use togi_runtime::worker::lease::Lease;
use togi_runtime::{Class, Context, layout, telemetry};
use togi_tokens::manifest::DatasetManifest;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::rpc::conversion::dataset_ready;
use crate::shards;

/// The parts of one preparation's commit.
pub(crate) struct Commit<'a> {
    pub(crate) context: &'a Context,
    pub(crate) job: &'a Job,
    /// Checked before each visible step.
    pub(crate) lease: &'a Lease,
    pub(crate) stop: &'a CancellationToken,
}

impl Commit<'_> {
    /// Returns the manifest of a data set if it is committed already.
    pub(crate) async fn committed(&self, id: DatasetId) -> Result<Option<DatasetManifest>> {
        match self.catalog().manifest(id).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uploads a data set's files from the local disk and, last, its manifest.
    pub(crate) async fn dataset(
        &self,
        manifest: &DatasetManifest,
        folder: &Path,
        rejects: &Path,
    ) -> Result<()> {
        let store = &self.context.store;
        let id = manifest.dataset;
        let parts = manifest
            .parts
            .iter()
            .map(|part| (&part.path, shards::local(folder, part)));
        let rejects = (&manifest.rejects.path, rejects.to_owned());
        for (name, local) in parts.chain([rejects]) {
            let key = layout::dataset_file(id, name);
            let put = self
                .stop
                .run_until_cancelled(store.put_file(&key, &local))
                .await;
            put.ok_or(Error::Stopped)??;
        }
        self.may_publish().await?;
        store
            .put_new(&layout::dataset_manifest(id), manifest.to_json())
            .await?;
        Ok(())
    }

    /// Gives a committed data set its name, with the form of the records that it was read from, and
    /// publishes the event.
    pub(crate) async fn name(
        &self,
        name: &str,
        read_as: &str,
        manifest: &DatasetManifest,
    ) -> Result<()> {
        self.may_publish().await?;
        let ours = NameRevision {
            name: name.to_owned(),
            dataset: manifest.dataset,
            time: String::new(),
            traceparent: telemetry::current_traceparent(),
            job: Some(self.job.id.to_string()),
            read_as: read_as.to_owned(),
        };
        let since = self.job.create_time;
        let revision = self.catalog().name(&ours, since).await?;
        // Also for an old revision: the attempt that made it may have ended before it published.
        let ready = dataset_ready(name, revision, read_as, manifest);
        Ok(self.context.bus.publish(ready).await?)
    }

    /// Fails if another worker has the job, or if it has ended.
    async fn may_publish(&self) -> Result<()> {
        self.lease.check().await?;
        Ok(self.lease.still_open().await?)
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.context.store.clone())
    }
}
