//! What was promoted, as a metric: beside what each replica says that it serves, it shows who has
//! not converged.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use opentelemetry::KeyValue;
use parking_lot::Mutex;
use togi_runtime::registry::aliases::{Alias, Aliases};
use togi_runtime::telemetry::{self, semconv};
use togi_runtime::{Result, Stopper};

/// Keeps the metric until stopped.
///
/// # Errors
/// None.
pub(crate) async fn observe(aliases: Aliases, period: Duration, stopper: Stopper) -> Result<()> {
    let promoted: Arc<Mutex<Vec<Alias>>> = Arc::default();
    // Weak: the meter outlives this task.
    let seen = Arc::downgrade(&promoted);
    telemetry::meter()
        .u64_observable_gauge("togi.trainer.alias.info")
        .with_description("1 for each alias, with the generation that was promoted")
        .with_callback(move |observer| {
            let Some(promoted) = seen.upgrade() else {
                return;
            };
            for alias in &*promoted.lock() {
                let labels = [
                    KeyValue::new(semconv::ALIAS, alias.name().to_string()),
                    KeyValue::new(semconv::GENERATION, alias.generation().to_string()),
                ];
                observer.observe(1, &labels);
            }
        })
        .build();
    let mut following = aliases.follow(period);
    while let Some(Some(aliases)) = stopper.run(following.next()).await {
        *promoted.lock() = aliases;
    }
    Ok(())
}
