//! The adapters that each inference replica serves. A replica refreshes its entry; the entry of a
//! dead replica expires.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use togi_common::canonical;
use tokio::sync::watch;

use crate::bus::Bus;
use crate::bus::streams::REPLICA_LIFETIME;
use crate::error::Result;
use crate::life::stop::Stopper;

/// Maintains this process's entry: writes it when it changes and before it expires, and deletes it
/// when the stopper stops. A failed write is logged and repeated.
///
/// # Errors
/// If the value cannot be serialized as JSON.
pub async fn announce<T: Serialize + Clone + Send + Sync>(
    bus: Bus,
    replica: String,
    mut entry: watch::Receiver<T>,
    stopper: Stopper,
) -> Result<()> {
    while !stopper.is_stopped() {
        let bytes = canonical::json(&*entry.borrow_and_update())?;
        let mut pause = REPLICA_LIFETIME / 3;
        if let Some(Err(error)) = stopper.run(bus.replicas().put(&replica, bytes)).await {
            tracing::debug!(error = error.chain(), "replica was not announced");
            pause = Duration::from_secs(1);
        }
        tokio::select! {
            changed = entry.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(pause) => {}
            () = stopper.stopped() => {}
        }
    }
    // Otherwise the entry would remain until it expires.
    let _ = tokio::time::timeout(Duration::from_secs(1), bus.replicas().delete(&replica)).await;
    Ok(())
}

/// Returns the replicas' entries by name, without unreadable ones.
///
/// # Errors
/// `Unavailable`.
pub async fn list<T: DeserializeOwned>(bus: &Bus) -> Result<BTreeMap<String, T>> {
    let entries = bus.replicas().entries().await?.into_iter();
    let read = entries.filter_map(|entry| {
        let value = serde_json::from_slice(&entry.value?).ok()?;
        Some((entry.key, value))
    });
    Ok(read.collect())
}
