//! Reads a call's deadline, and lets everything below the call see it.

use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request};
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};

use crate::life::deadline::Deadline;

/// The deadline of a call, as gRPC writes it.
pub const TIMEOUT: &str = "grpc-timeout";

/// Runs each call under its deadline.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Hurried<S>;

    fn layer(&self, inner: S) -> Hurried<S> {
        Hurried(inner)
    }
}

/// The service with the layer around it.
#[derive(Clone, Debug)]
pub struct Hurried<S>(S);

impl<S: Service<Request<I>>, I> Service<Request<I>> for Hurried<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = TaskLocalFuture<Deadline, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        Deadline::after(timeout(request.headers())).scope(self.0.call(request))
    }
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    duration(headers.get(TIMEOUT)?.to_str().ok()?)
}

/// Reads a timeout as gRPC writes it: at most 8 digits and a unit. `None` for anything else.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(3600 * count),
        "M" => Duration::from_secs(60 * count),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        let table = [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1秒", None),
            ("10", None),
        ];
        for (text, expected) in table {
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }
}
