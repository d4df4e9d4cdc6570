//! When a policy trains: at new revisions of its data set, at the times of a schedule, or both.

use jiff::Timestamp;
use togi_runtime::registry::revisions::NameRevision;

use crate::error::Result;
use crate::policies::schedule::Schedule;

/// When a policy trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// At each new revision of the data set.
    pub new_revision: bool,
    /// At the times of this schedule.
    pub schedule: Option<String>,
}

/// Which revisions' time has come; to be asked from the newest to the oldest.
#[derive(Debug)]
pub struct Time {
    new_revision: bool,
    seen: u64,
    /// The schedule's last time, if there was one.
    scheduled: Option<Timestamp>,
    /// The newest revision of that time was passed.
    passed: bool,
}

impl Trigger {
    /// Returns which revisions' time has come by `now`: of a version that was applied at `since`,
    /// when `seen` was the newest revision.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if this build does not take its schedule any more.
    pub fn time(&self, seen: u64, since: Option<Timestamp>, now: Timestamp) -> Result<Time> {
        let scheduled = match (&self.schedule, since) {
            (Some(schedule), Some(since)) => Schedule::parse(schedule)?.last(since, now),
            _ => None,
        };
        Ok(Time {
            new_revision: self.new_revision,
            seen,
            scheduled,
            passed: false,
        })
    }
}

impl Time {
    /// Whether this revision's time has come.
    pub fn has_come(&mut self, revision: u64, named: &NameRevision) -> bool {
        let is_new = revision > self.seen;
        let was_there = |scheduled: Timestamp| {
            let made = named.time.parse::<Timestamp>();
            made.is_ok_and(|made| made <= scheduled)
        };
        if self.scheduled.is_some_and(was_there) {
            let newest = !self.passed;
            self.passed = true;
            return newest || is_new;
        }
        self.new_revision && is_new
    }

    /// Whether neither this revision's time nor an older one's comes.
    #[must_use]
    pub fn is_over(&self, revision: u64) -> bool {
        revision <= self.seen && (self.scheduled.is_none() || self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(time: &str) -> NameRevision {
        NameRevision {
            name: "d".into(),
            dataset: "d".repeat(64).parse().unwrap(),
            time: time.into(),
            traceparent: None,
            job: None,
            read_as: String::new(),
        }
    }

    /// Revisions whose time has come, newest first; revision n was made at n o'clock.
    fn due(new_revision: bool, schedule: &str, seen: u64, now: &str) -> Vec<u64> {
        let trigger = Trigger {
            new_revision,
            schedule: Some(schedule.to_owned()).filter(|schedule| !schedule.is_empty()),
        };
        let since = "2026-01-01T02:30:00Z".parse().unwrap();
        let mut time = trigger
            .time(seen, Some(since), now.parse().unwrap())
            .unwrap();
        let mut due = Vec::new();
        for revision in (1..=5).rev() {
            if time.is_over(revision) {
                break;
            }
            if time.has_come(revision, &named(&format!("2026-01-01T0{revision}:00:00Z"))) {
                due.push(revision);
            }
        }
        due
    }

    #[test]
    fn new_revisions_come_at_once_and_scheduled_ones_at_their_time() {
        let (early, late) = ("2026-01-01T03:29:00Z", "2026-01-01T05:10:00Z");
        let every_hour = "30 * * * *";
        // Applied at half past two, after revision 2.
        assert_eq!(due(true, "", 2, early), [5, 4, 3]);
        assert!(due(false, "", 2, early).is_empty());
        assert!(due(false, every_hour, 2, early).is_empty(), "not yet");
        // At half past four revisions 3 and 4 were there, and no other is new.
        assert_eq!(due(false, every_hour, 2, late), [4, 3]);
        assert_eq!(due(true, every_hour, 2, late), [5, 4, 3]);
        // Nothing new was there, but what there was had not been tried.
        assert_eq!(due(false, every_hour, 5, late), [4]);
    }
}
