//! Who calls, from a call's metadata and connection.

use std::time::Duration;

use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::engine::request::Caller;
use crate::error::{Error, Result};

/// The metadata that names a client.
const CLIENT: &str = "togi-client";
/// The deadline of a call, as gRPC writes it.
const TIMEOUT: &str = "grpc-timeout";
/// Longest name of a client, in bytes.
const MAX_BYTES: usize = 128;

/// Reads who calls. Without a name, a client is the address that it calls from.
///
/// # Errors
/// [`Error::Field`] for a name that is empty, too long or not ASCII.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller> {
    let client = match name(request.metadata())? {
        Some(name) => name.into(),
        None => {
            let address = request.remote_addr();
            address.map_or_else(String::new, |address| address.ip().to_string())
        }
    };
    let timeout = request.metadata().get(TIMEOUT);
    Ok(Caller {
        client: client.into(),
        timeout: timeout.and_then(|text| duration(text.to_str().ok()?)),
    })
}

fn name(metadata: &MetadataMap) -> Result<Option<&str>> {
    let Some(value) = metadata.get(CLIENT) else {
        return Ok(None);
    };
    let name = value.to_str().unwrap_or_default();
    if name.is_empty() || name.len() > MAX_BYTES {
        let reason = format!("must be 1 to {MAX_BYTES} characters of ASCII");
        return Err(Error::field(CLIENT, reason));
    }
    Ok(Some(name))
}

/// Reads a timeout: at most 8 digits and a unit.
fn duration(text: &str) -> Option<Duration> {
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

    #[test]
    fn a_client_is_named_by_its_metadata() {
        let named = |name: &str| {
            let mut request = Request::new(());
            request.metadata_mut().insert(CLIENT, name.parse().unwrap());
            caller(&request)
        };
        assert_eq!(&*named("nightly").unwrap().client, "nightly");
        assert_eq!(&*caller(&Request::new(())).unwrap().client, "");
        for wrong in ["", &"x".repeat(129)] {
            let error = named(wrong).unwrap_err().to_string();
            assert!(error.starts_with("togi-client: "), "{error}");
        }
        let mut request = Request::new(());
        request.set_timeout(Duration::from_secs(5));
        assert_eq!(
            caller(&request).unwrap().timeout,
            Some(Duration::from_secs(5))
        );
    }
}
