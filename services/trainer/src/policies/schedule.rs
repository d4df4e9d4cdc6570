//! A policy's schedule: cron's five fields and a time zone, by default UTC. If no process ran at
//! several scheduled times, only the last of them counts.

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};

/// Times that come again.
#[derive(Clone, Debug)]
pub(crate) struct Schedule(Crontab);

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Schedule> {
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let wrong = |error: cronexpr::Error| {
            let first = error.to_string();
            let first = first.lines().next_back().unwrap_or_default().trim();
            let reason = format!(
                "is {text:?}, which is no schedule ({}); one looks like \"30 3 * * 1-5 Asia/Tokyo\"",
                first.trim_start_matches(['^', ' '])
            );
            Error::invalid("policy.trigger.schedule", reason)
        };
        cronexpr::parse_crontab_with(text, options)
            .map(Schedule)
            .map_err(wrong)
    }

    /// Returns the last of its times that is after `since` and not after `now`.
    #[must_use]
    pub(crate) fn last(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        // From the near past to the far: the first window that has times has few of them.
        let mut window = SignedDuration::from_hours(1);
        loop {
            let near = now.checked_sub(window).ok().filter(|near| *near > since);
            let last = self.last_after(near.unwrap_or(since), now);
            if last.is_some() || near.is_none() {
                return last;
            }
            window = window.saturating_mul(2);
        }
    }

    fn last_after(&self, mut at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let mut last = None;
        while let Ok(next) = self.0.find_next(MakeTimestamp(at)) {
            let next = next.timestamp();
            if next > now {
                break;
            }
            (last, at) = (Some(next), next);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_time_is_found_however_long_ago_it_was() {
        let table = [
            // schedule, since, now, last
            (
                "30 3 * * *",
                "2026-03-01T00:00:00Z",
                "2026-03-01T03:29:59Z",
                None,
            ),
            (
                "30 3 * * *",
                "2026-03-01T00:00:00Z",
                "2026-03-01T03:30:00Z",
                Some("2026-03-01T03:30:00Z"),
            ),
            (
                "30 3 * * *",
                "2026-01-01T00:00:00Z",
                "2026-03-09T01:00:00Z",
                Some("2026-03-08T03:30:00Z"),
            ),
            // What is at `since` itself was before it.
            (
                "30 3 * * *",
                "2026-03-01T03:30:00Z",
                "2026-03-02T03:00:00Z",
                None,
            ),
            (
                "30 3 * * * Asia/Tokyo",
                "2026-03-01T00:00:00Z",
                "2026-03-01T20:00:00Z",
                Some("2026-03-01T18:30:00Z"),
            ),
            (
                "0 0 29 2 *",
                "2024-01-01T00:00:00Z",
                "2027-06-01T00:00:00Z",
                Some("2024-02-29T00:00:00Z"),
            ),
            (
                "* * * * *",
                "2026-03-01T00:00:00Z",
                "2027-03-01T00:00:59Z",
                Some("2027-03-01T00:00:00Z"),
            ),
        ];
        for (schedule, since, now, last) in table {
            let found = Schedule::parse(schedule).unwrap().last(at(since), at(now));
            assert_eq!(found, last.map(at), "{schedule} {since} {now}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_by_name() {
        for text in [
            "",
            "often",
            "61 * * * *",
            "* * * *",
            "* * * * * Nowhere/Land",
        ] {
            let error = Schedule::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("policy.trigger.schedule is "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
