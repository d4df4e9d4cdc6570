//! A replica's gauges, read whenever metrics are collected.

use std::sync::Arc;

use opentelemetry::KeyValue;

use crate::adapters::Adapters;
use crate::engine::load::Load;
use crate::metrics::TierName;
use crate::pool::Usage;
use crate::semconv;

/// A gauge over the load: its name, its description and its value.
type OverLoad = (&'static str, &'static str, fn(&Load) -> usize);

const OVER_LOAD: [OverLoad; 6] = [
    (
        "togi.inference.active",
        "Answers that progress now",
        Load::active,
    ),
    (
        "togi.inference.waiting",
        "Requests that wait for one of the active to end",
        Load::waiting,
    ),
    (
        "togi.inference.waiting.prompt_tokens",
        "Tokens of the prompts that wait",
        Load::waiting_tokens,
    ),
    (
        "togi.inference.pages.used",
        "Pages of keys and values that are reserved for the active answers",
        Load::pages_used,
    ),
    (
        "togi.inference.pages.free",
        "Pages of keys and values that are not reserved",
        Load::pages_free,
    ),
    (
        "togi.inference.pages.cached",
        "Pages, of the free ones, that are kept for prompts with the same beginning",
        Load::pages_cached,
    ),
];

/// A gauge over what adapters have of a tier: its name, its description and its value.
type OverTier = (&'static str, &'static str, fn(&Usage) -> u64);

const OVER_TIERS: [OverTier; 4] = [
    (
        "togi.inference.pool.adapters",
        "Adapters on the device and in main memory",
        |usage| usage.adapters as u64,
    ),
    (
        "togi.inference.pool.adapters.used",
        "Adapters that requests use",
        |usage| usage.in_use as u64,
    ),
    (
        "togi.inference.pool.bytes",
        "Bytes of the adapters on the device and in main memory",
        |usage| usage.bytes,
    ),
    (
        "togi.inference.pool.limit.bytes",
        "Most bytes of adapters on the device and in main memory",
        |usage| usage.limit,
    ),
];

/// Registers the gauges of requests, pages and adapters.
pub(super) fn register(load: &Arc<Load>, adapters: &Arc<Adapters>, replica: &str) {
    let replica = KeyValue::new(semconv::REPLICA, replica.to_owned());
    // Weak: the meter outlives the replica.
    for (name, what, value) in OVER_LOAD {
        let weak = Arc::downgrade(load);
        observe(name, what, &replica, move |observe| {
            if let Some(load) = weak.upgrade() {
                observe(value(&load) as u64, &[]);
            }
        });
    }
    for (name, what, value) in OVER_TIERS {
        let weak = Arc::downgrade(adapters);
        observe(name, what, &replica, move |observe| {
            if let Some(adapters) = weak.upgrade() {
                let tiers = &adapters.tiers;
                observe(value(&tiers.on_device()), &[TierName::Device.label()]);
                observe(value(&tiers.in_memory()), &[TierName::Host.label()]);
            }
        });
    }
    let weak = Arc::downgrade(adapters);
    let (name, what) = (
        "togi.inference.waiting.adapters",
        "Requests that wait for their adapter to be brought onto the device",
    );
    observe(name, what, &replica, move |observe| {
        if let Some(adapters) = weak.upgrade() {
            observe(adapters.tiers.waiting() as u64, &[]);
        }
    });
    let weak = Arc::downgrade(adapters);
    let (name, what) = (
        "togi.inference.adapter.info",
        "1 for each alias that is served, with its generation",
    );
    observe(name, what, &replica, move |observe| {
        let Some(adapters) = weak.upgrade() else {
            return;
        };
        for (alias, serving) in &adapters.shelf.served().aliases {
            let generation = serving.adapter.generation().to_string();
            let alias = KeyValue::new(semconv::ALIAS, alias.to_string());
            observe(1, &[alias, KeyValue::new(semconv::GENERATION, generation)]);
        }
    });
}

/// Registers a gauge of a replica. `read` calls its argument for each value with its other labels.
fn observe(
    name: &'static str,
    what: &'static str,
    replica: &KeyValue,
    read: impl Fn(&dyn Fn(u64, &[KeyValue])) + Send + Sync + 'static,
) {
    let replica = replica.clone();
    togi_runtime::telemetry::meter()
        .u64_observable_gauge(name)
        .with_description(what)
        .with_callback(move |observer| {
            read(&|value, labels| {
                let labels = [labels, std::slice::from_ref(&replica)].concat();
                observer.observe(value, &labels);
            });
        })
        .build();
}
