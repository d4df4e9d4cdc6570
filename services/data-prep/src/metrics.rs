//! The service's OpenTelemetry counters.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};

/// The service's counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    records: Counter<u64>,
    tokens: Counter<u64>,
    source_bytes: Counter<u64>,
    flight_rows: Counter<u64>,
    flight_cache: Counter<u64>,
}

impl Metrics {
    /// Makes the counters on a meter.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, unit: &'static str, about: &'static str| {
            meter
                .u64_counter(name)
                .with_unit(unit)
                .with_description(about)
                .build()
        };
        Self {
            records: counter(
                "togi.prepare.records",
                "{record}",
                "records read, by outcome",
            ),
            tokens: counter(
                "togi.prepare.tokens",
                "{token}",
                "ids in accepted records' rows",
            ),
            source_bytes: counter("togi.prepare.source", "By", "bytes of sources read"),
            flight_rows: counter("togi.flight.rows", "{row}", "rows sent over arrow flight"),
            flight_cache: counter(
                "togi.flight.shards",
                "{shard}",
                "shards asked for, by source",
            ),
        }
    }

    /// Counts records and the ids of their rows.
    pub(crate) fn records(&self, accepted: u64, rejected: u64, tokens: u64) {
        for (outcome, count) in [("accepted", accepted), ("rejected", rejected)] {
            if count > 0 {
                self.records
                    .add(count, &[KeyValue::new("outcome", outcome)]);
            }
        }
        self.tokens.add(tokens, &[]);
    }

    /// Counts bytes of a source.
    pub(crate) fn source_bytes(&self, bytes: u64) {
        self.source_bytes.add(bytes, &[]);
    }

    /// Counts rows that were sent over Flight.
    pub(crate) fn flight_rows(&self, rows: u64) {
        self.flight_rows.add(rows, &[]);
    }

    /// Counts a requested shard by its origin: `"cache"` or `"store"`.
    pub(crate) fn shard(&self, from: &'static str) {
        self.flight_cache.add(1, &[KeyValue::new("from", from)]);
    }
}
