//! A replica's gauges, read whenever metrics are collected.

use std::sync::Arc;

use opentelemetry::KeyValue;

use crate::adapters::served::Shelf;
use crate::engine::load::Load;
use crate::semconv;

/// Registers the gauges of active and waiting requests, and of adapters in memory and served.
pub(super) fn register(load: &Arc<Load>, shelf: &Arc<Shelf>, replica: &str) {
    let meter = togi_runtime::telemetry::meter();
    let replica = KeyValue::new(semconv::REPLICA, replica.to_owned());
    // Weak: the meter outlives the replica.
    let (weak, label) = (Arc::downgrade(load), replica.clone());
    meter
        .u64_observable_gauge("togi.inference.active")
        .with_description("Answers that progress now")
        .with_callback(move |observer| {
            if let Some(load) = weak.upgrade() {
                observer.observe(load.active() as u64, std::slice::from_ref(&label));
            }
        })
        .build();
    let (weak, label) = (Arc::downgrade(load), replica.clone());
    meter
        .u64_observable_gauge("togi.inference.waiting")
        .with_description("Requests that wait for one of the active to end")
        .with_callback(move |observer| {
            if let Some(load) = weak.upgrade() {
                observer.observe(load.waiting() as u64, std::slice::from_ref(&label));
            }
        })
        .build();
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
