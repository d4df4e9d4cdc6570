//! The parts that every service works with: stopper, bus, store, readiness, and the name of the
//! process.

use crate::bus::Bus;
use crate::config::{NatsConfig, StoreConfig};
use crate::error::{Class, Error, Result};
use crate::life::crypto::install_crypto;
use crate::life::readiness::Readiness;
use crate::life::stop::Stopper;
use crate::store::{Store, random_hex};

/// The parts of a service's process. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    /// Requests the end.
    pub stopper: Stopper,
    /// The bus.
    pub bus: Bus,
    /// The object store.
    pub store: Store,
    /// Whether the process can do its work.
    pub readiness: Readiness,
    /// The process's unique name as worker and replica.
    pub instance: String,
}

impl Context {
    /// Opens store and bus, waiting for both. `service` begins the instance's name.
    ///
    /// # Errors
    /// `InvalidArgument` or `FailedPrecondition` if the configuration is wrong; `Cancelled` if the
    /// stopper stops first.
    pub async fn open(
        nats: &NatsConfig,
        store: &StoreConfig,
        service: &str,
        readiness: Readiness,
        stopper: Stopper,
    ) -> Result<Self> {
        let _latch = readiness.latch("bus");
        let context = Self::open_store_first(nats, store, service, readiness, stopper).await?;
        context.bus.usable().await?;
        Ok(context)
    }

    /// Opens the store, waiting for it, and a bus that connects in the background.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub async fn open_store_first(
        nats: &NatsConfig,
        store: &StoreConfig,
        service: &str,
        readiness: Readiness,
        stopper: Stopper,
    ) -> Result<Self> {
        let (store, instance) = open_store(store, service, &readiness, &stopper).await?;
        let bus = Bus::connect_later(nats, &instance, &stopper).await?;
        Ok(Self {
            stopper,
            bus,
            store,
            readiness,
            instance,
        })
    }

    /// Notes in the readiness whether NATS is away, until the stop.
    ///
    /// # Errors
    /// Never: the signature is that of a task.
    pub async fn note_absences(self) -> Result<()> {
        let mut presence = self.bus.presence();
        loop {
            let away = presence.borrow_and_update().clone();
            let reason = away.map(|away| format!("{}, since {:.0}", away.reason, away.since));
            self.readiness.note("NATS", reason);
            match self.stopper.run(presence.changed()).await {
                Some(Ok(())) => {}
                _ => return Ok(()),
            }
        }
    }
}

async fn open_store(
    config: &StoreConfig,
    service: &str,
    readiness: &Readiness,
    stopper: &Stopper,
) -> Result<(Store, String)> {
    install_crypto();
    let _latch = readiness.latch("store");
    let instance = instance(service)?;
    let cancelled = || {
        Error::new(
            Class::Cancelled,
            "stopped before the object store was there",
        )
    };
    let waits = |error: &Error| readiness.note("store", Some(error.message().to_owned()));
    let opening = Store::open_noting(config, waits);
    let store = stopper
        .run(opening)
        .await
        .ok_or_else(cancelled)?
        .map_err(|error| match error.field() {
            // `url` is any store's field, because bases and sources have stores too.
            Some("url") => error.with_field("store.url"),
            _ => error,
        })?;
    readiness.note("store", None);
    Ok((store, instance))
}

/// Returns a unique name: service, host, and random digits.
///
/// # Errors
/// When the system has no randomness.
pub fn instance(service: &str) -> Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(40)
        .collect();
    let random = random_hex()?;
    Ok(format!("{service}-{host}-{}", &random[..8])
        .to_ascii_lowercase()
        .replace("--", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_differ() {
        let (one, two) = (
            instance("togi-trainer").unwrap(),
            instance("togi-trainer").unwrap(),
        );
        assert_ne!(one, two);
        assert!(one.starts_with("togi-trainer-"), "{one}");
    }
}
