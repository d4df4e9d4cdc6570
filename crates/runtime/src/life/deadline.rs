//! The time that a call has. Everything below the call sees it, as it sees the call's trace, so
//! that each wait on the way ends while the caller still listens.

use std::time::Duration;

use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, timeout_at};

use crate::error::{Class, Error};

/// How long a call without a deadline waits for a part that does not answer.
pub const DEFAULT: Duration = Duration::from_secs(5);
/// Longest time that is kept back for an answer's way to its caller.
const MAX_MARGIN: Duration = Duration::from_millis(250);
/// A deadline is at most this far away.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

tokio::task_local! {
    static CURRENT: Deadline;
}

/// When a call must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    total: Duration,
    origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Caller,
    Default,
}

impl Deadline {
    /// Returns the deadline of a call that begins now, with the caller's timeout or the default.
    #[must_use]
    pub fn after(timeout: Option<Duration>) -> Self {
        let (total, origin) = match timeout {
            Some(total) => (total.min(FAR), Origin::Caller),
            None => (DEFAULT, Origin::Default),
        };
        let margin = match origin {
            Origin::Caller => (total / 10).min(MAX_MARGIN),
            Origin::Default => Duration::ZERO,
        };
        Self {
            at: Instant::now() + (total - margin),
            total,
            origin,
        }
    }

    /// Returns the deadline of the call that this code runs for; `None` outside of calls.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|deadline| *deadline).ok()
    }

    /// Runs a future as the work of a call with this deadline.
    pub fn scope<F: Future>(self, work: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, work)
    }

    /// Returns the time that is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    fn missed(&self, outcome: &str) -> Error {
        let class = match self.origin {
            Origin::Caller => Class::DeadlineExceeded,
            Origin::Default => Class::Unavailable,
        };
        let seconds = self.total.as_secs_f64();
        let message =
            format!("a part of the system did not answer within {seconds:.1} s; {outcome}");
        Error::new(class, message)
    }
}

/// Waits for parts of the system until the deadline of the current call, or without a limit
/// outside of calls.
///
/// # Errors
/// The work's; `DeadlineExceeded` if the caller's time is over, `Unavailable` if the default's is.
/// The message ends with `outcome`, for example "nothing was changed".
pub fn bounded<T, E: From<Error>>(
    outcome: &str,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    // Boxed here, because each async function would hold it twice.
    let work = Box::pin(work);
    async move {
        let Some(deadline) = Deadline::current() else {
            return work.await;
        };
        let done = timeout_at(deadline.at, work).await;
        done.unwrap_or_else(|_| Err(deadline.missed(outcome).into()))
    }
}

/// Waits for work that progresses, such as reading a base: only a deadline of the caller ends it.
///
/// # Errors
/// As [`bounded`].
pub fn bounded_by_caller<T, E: From<Error>>(
    outcome: &str,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    let work = Box::pin(work);
    async move {
        match Deadline::current() {
            Some(Deadline {
                origin: Origin::Caller,
                ..
            }) => bounded(outcome, work).await,
            _ => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_the_deadline_of_its_call_and_says_what_is_known() {
        let table = [
            (None, Class::Unavailable),
            (Some(Duration::from_secs(2)), Class::DeadlineExceeded),
            (Some(Duration::ZERO), Class::DeadlineExceeded),
            (Some(Duration::MAX), Class::DeadlineExceeded),
        ];
        for (timeout, class) in table {
            let waiting = bounded::<(), Error>("nothing was changed", pending());
            let error = Deadline::after(timeout).scope(waiting).await.unwrap_err();
            assert_eq!(error.class(), class, "{timeout:?}");
            assert!(
                error.message().ends_with("s; nothing was changed"),
                "{error}"
            );
        }
        assert_eq!(Deadline::current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_progresses_outlasts_the_default_but_not_the_caller() {
        let work = || async {
            tokio::time::sleep(4 * DEFAULT).await;
            Ok::<_, Error>(())
        };
        let unhurried = bounded_by_caller("", work());
        Deadline::after(None).scope(unhurried).await.unwrap();
        let hurried = bounded_by_caller("", work());
        let error = Deadline::after(Some(DEFAULT)).scope(hurried).await;
        assert_eq!(error.unwrap_err().class(), Class::DeadlineExceeded);
    }
}
