//! Percentiles of durations, in milliseconds.

use std::time::Duration;

use serde_json::{Value, json};

/// Returns the middle one of some values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the least duration that this percentage of all do not exceed, in milliseconds; NaN of
/// no durations.
pub(crate) fn percentile(durations: &[Duration], percent: f64) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    let at = sorted.get(rank.saturating_sub(1));
    at.map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
}

/// Returns the count, the median, the 99th percentile and the largest, in milliseconds.
pub(crate) fn spread(durations: &[Duration]) -> Value {
    json!({
        "count": durations.len(),
        "p50_ms": percentile(durations, 50.0),
        "p99_ms": percentile(durations, 99.0),
        "max_ms": percentile(durations, 100.0),
    })
}
