//! Times for people: local dates, ages and durations.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::progress::seconds;

/// Returns a time in the local time zone; empty for `None`.
pub fn local(time: Option<&pbjson_types::Timestamp>) -> String {
    let Some(time) = time.and_then(timestamp) else {
        return String::new();
    };
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Returns how long ago a time was, in its largest unit: `5m`.
pub fn age(time: Option<&pbjson_types::Timestamp>) -> String {
    let Some(time) = time.and_then(timestamp) else {
        return String::new();
    };
    let passed = (Timestamp::now().as_second() - time.as_second()).max(0);
    match passed {
        0..120 => format!("{passed}s"),
        120..7200 => format!("{}m", passed / 60),
        7200..172_800 => format!("{}h", passed / 3600),
        _ => format!("{}d", passed / 86_400),
    }
}

/// Returns the time between two; empty unless both are known.
pub fn between(
    start: Option<&pbjson_types::Timestamp>,
    end: Option<&pbjson_types::Timestamp>,
) -> String {
    match (start.and_then(timestamp), end.and_then(timestamp)) {
        (Some(start), Some(end)) => {
            seconds((end.as_millisecond() - start.as_millisecond()) as f64 / 1000.0)
        }
        _ => String::new(),
    }
}

fn timestamp(time: &pbjson_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> pbjson_types::Timestamp {
        pbjson_types::Timestamp {
            seconds: second,
            nanos: 0,
        }
    }

    #[test]
    fn ages_use_the_largest_unit() {
        let now = Timestamp::now().as_second();
        assert!(age(Some(&at(now - 5))).ends_with('s'));
        assert_eq!(age(Some(&at(now - 600))), "10m");
        assert_eq!(age(Some(&at(now - 3 * 86_400))), "3d");
        assert_eq!(age(None), "");
    }

    #[test]
    fn spans_need_both_ends() {
        assert_eq!(between(Some(&at(10)), Some(&at(13))), "3.0 s");
        assert_eq!(between(Some(&at(10)), None), "");
    }
}
