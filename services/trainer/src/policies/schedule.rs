//! A policy's schedule: cron's five fields and a time zone, by default UTC. If no process ran at
//! several scheduled times, only the last of them counts.
//!
//! A time of day comes once on each of its days, also where clocks are changed: one that is skipped
//! comes as much later as the clocks were moved, and one that comes twice counts the first time. A
//! schedule of every hour (`*`) follows the time that passes instead.

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};

/// More than clocks were ever moved at once.
const CLOCK_CHANGE: SignedDuration = SignedDuration::from_hours(26);

/// Times that come again.
#[derive(Clone, Debug)]
pub(crate) enum Schedule {
    /// Whenever the clocks of the table's zone show one of its times.
    EveryHour(Crontab),
    /// Times of day: a table whose clocks are never changed, and the zone that they are shown in.
    TimesOfDay(Crontab, TimeZone),
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Schedule> {
        let wrong = |error: cronexpr::Error| {
            let first = error.to_string();
            let first = first.lines().next_back().unwrap_or_default().trim();
            let reason = format!(
                "is {text:?}, which is no schedule ({}); one looks like \"30 3 * * 1-5 Asia/Tokyo\"",
                first.trim_start_matches(['^', ' '])
            );
            Error::invalid("policy.trigger.schedule", reason)
        };
        let in_zone = table(text).map_err(wrong)?;
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday, _zone] = fields[..] else {
            // UTC has no clock changes.
            return Ok(Self::EveryHour(in_zone));
        };
        if hour == "*" {
            return Ok(Self::EveryHour(in_zone));
        }
        // Any of its times tells the zone as the parser understood it.
        let Ok(first) = in_zone.find_next(MakeTimestamp(Timestamp::UNIX_EPOCH)) else {
            return Ok(Self::EveryHour(in_zone));
        };
        let without_zone = [minute, hour, day, month, weekday].join(" ");
        let table = table(&without_zone).map_err(wrong)?;
        Ok(Self::TimesOfDay(table, first.time_zone().clone()))
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

    fn last_after(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::EveryHour(table) => times(table, since, now).last(),
            Self::TimesOfDay(table, zone) => {
                let shown = |at: Timestamp| {
                    let shown = zone.to_datetime(at).to_zoned(TimeZone::UTC);
                    shown.map_or(at, |shown| shown.timestamp())
                };
                let from = shown(since).saturating_sub(CLOCK_CHANGE).unwrap_or(since);
                let to = shown(now).saturating_add(CLOCK_CHANGE).unwrap_or(now);
                let at = |shown: Timestamp| {
                    let shown = TimeZone::UTC.to_datetime(shown);
                    zone.to_ambiguous_timestamp(shown).compatible().ok()
                };
                let times = times(table, from, to).filter_map(at);
                times.filter(|at| since < *at && *at <= now).max()
            }
        }
    }
}

fn table(text: &str) -> std::result::Result<Crontab, cronexpr::Error> {
    let mut options = ParseOptions::default();
    options.fallback_timezone_option = FallbackTimezoneOption::UTC;
    cronexpr::parse_crontab_with(text, options)
}

/// The times of a table after `since` and not after `now`.
fn times(table: &Crontab, since: Timestamp, now: Timestamp) -> impl Iterator<Item = Timestamp> {
    let next = move |at: Timestamp| {
        let next = table.find_next(MakeTimestamp(at)).ok()?.timestamp();
        (next <= now).then_some(next)
    };
    std::iter::successors(next(since), move |at| next(*at))
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

    /// Every time of a schedule, one after the other.
    fn all(schedule: &str, from: &str, to: &str) -> Vec<String> {
        let schedule = Schedule::parse(schedule).unwrap();
        let (mut times, from, mut now) = (Vec::new(), at(from), at(to));
        while let Some(last) = schedule.last(from, now) {
            times.push(last.to_string());
            now = last - SignedDuration::from_secs(1);
        }
        times.reverse();
        times
    }

    #[test]
    fn a_time_of_day_comes_once_where_clocks_are_changed() {
        // Berlin skips 02:00 to 03:00 on 29 March 2026, and has it twice on 25 October.
        let spring = ("2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z");
        let autumn = ("2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z");
        let table: [(&str, (&str, &str), &[&str]); 7] = [
            (
                "30 2 * * * Europe/Berlin",
                spring,
                &["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"],
            ),
            (
                "30 2 * * * Europe/Berlin",
                autumn,
                &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            ),
            // The time that is made up for is one that the schedule has too.
            (
                "30 2,3 * * * Europe/Berlin",
                ("2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z"),
                &["2026-03-29T01:30:00Z"],
            ),
            (
                "0 3 * * * Europe/Berlin",
                spring,
                &["2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"],
            ),
            // Only the Sunday of the change, in a zone that moves by half an hour.
            (
                "15 2 4 10 * Australia/Lord_Howe",
                ("2026-10-03T00:00:00Z", "2026-10-05T00:00:00Z"),
                &["2026-10-03T15:45:00Z"],
            ),
            (
                "0 * * * * Europe/Berlin",
                ("2026-10-24T23:30:00Z", "2026-10-25T02:30:00Z"),
                &[
                    "2026-10-25T00:00:00Z",
                    "2026-10-25T01:00:00Z",
                    "2026-10-25T02:00:00Z",
                ],
            ),
            (
                "0 * * * * Europe/Berlin",
                ("2026-03-28T23:30:00Z", "2026-03-29T02:30:00Z"),
                &[
                    "2026-03-29T00:00:00Z",
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T02:00:00Z",
                ],
            ),
        ];
        for (schedule, (from, to), times) in table {
            assert_eq!(all(schedule, from, to), times, "{schedule} {from}");
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
