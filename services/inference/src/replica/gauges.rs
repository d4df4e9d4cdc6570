//! A replica's gauges, read whenever metrics are collected.

use std::sync::Arc;

use opentelemetry::KeyValue;

use crate::adapters::served::Shelf;
use crate::engine::load::Load;
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

/// Registers the gauges of requests and pages, and of adapters in memory and served.
pub(super) fn register(load: &Arc<Load>, shelf: &Arc<Shelf>, replica: &str) {
    let meter = togi_runtime::telemetry::meter();
    let replica = KeyValue::new(semconv::REPLICA, replica.to_owned());
    for (name, what, value) in OVER_LOAD {
        // Weak: the meter outlives the replica.
        let (weak, label) = (Arc::downgrade(load), replica.clone());
        meter
            .u64_observable_gauge(name)
            .with_description(what)
            .with_callback(move |observer| {
                if let Some(load) = weak.upgrade() {
                    observer.observe(value(&load) as u64, std::slice::from_ref(&label));
                }
            })
            .build();
    }
    let (weak, label) = (Arc::downgrade(shelf), replica.clone());
    meter
        .u64_observable_gauge("togi.inference.adapters.resident")
        .with_description("Adapters in memory")
        .with_callback(move |observer| {
            if let Some(shelf) = weak.upgrade() {
                observer.observe(shelf.count() as u64, std::slice::from_ref(&label));
            }
        })
        .build();
    let weak = Arc::downgrade(shelf);
    meter
        .u64_observable_gauge("togi.inference.adapter.info")
        .with_description("1 for each alias that is served, with its generation")
        .with_callback(move |observer| {
            let Some(shelf) = weak.upgrade() else { return };
            for (alias, serving) in &shelf.served().aliases {
                let generation = serving.adapter.generation().to_string();
                let labels = [
                    KeyValue::new(semconv::ALIAS, alias.to_string()),
                    KeyValue::new(semconv::GENERATION, generation),
                    replica.clone(),
                ];
                observer.observe(1, &labels);
            }
        })
        .build();
}
