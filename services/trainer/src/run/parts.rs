//! The connections and settings that all stages of a job share.

use togi_runtime::registry::aliases::Aliases;
use togi_runtime::{Bus, Store, rpc};
use tracing::warn;

use crate::bases::Bases;
use crate::config::TrainingConfig;
use crate::gauge::Gauge;
use crate::metrics::Metrics;
use crate::run::announcement::Announcement;

/// The worker's connections and settings. Clones share them.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The object store.
    pub store: Store,
    /// The bus for events and progress.
    pub bus: Bus,
    /// The aliases, for promotions.
    pub aliases: Aliases,
    /// The configured bases; loaded weights are kept.
    pub bases: Bases,
    /// The client of data-prep.
    pub data_prep: rpc::client::Client,
    /// The training settings.
    pub training: TrainingConfig,
    /// The worker's metrics.
    pub metrics: Metrics,
    /// The readings of the GPU.
    pub gauge: Gauge,
}

impl Parts {
    /// Publishes an event. A failure is only logged, because the store has the same facts.
    pub(crate) async fn announce(&self, announcement: Announcement<'_>) {
        if let Err(error) = self.bus.publish(announcement).await {
            warn!(error = error.chain(), "an event was not published");
        }
    }
}
