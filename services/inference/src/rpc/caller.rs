//! Who calls, from a call's metadata and connection.

use togi_runtime::rpc::deadline::{TIMEOUT, duration};
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::engine::request::Caller;
use crate::error::{Error, Result};

/// The metadata that names a client.
const CLIENT: &str = "togi-client";
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
