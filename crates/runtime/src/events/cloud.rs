//! Converts CloudEvents' attributes to NATS headers and back: `ce-<attribute>`, percent-encoded as
//! the binding requires.

use std::time::SystemTime;

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::telemetry::TRACEPARENT;

/// The attributes of an event's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `ce-id`; with `source` it identifies duplicates.
    pub id: String,
    /// `ce-type`
    pub type_name: String,
    /// `ce-source`
    pub source: String,
    /// `ce-subject`, for example the job.
    pub subject: String,
    /// `ce-time`
    pub time: Option<SystemTime>,
    /// W3C trace context of the sender; empty outside a trace.
    pub traceparent: String,
    /// Its place in the stream; 0 before it is stored.
    pub sequence: u64,
}

impl Metadata {
    pub(super) fn to_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                headers.insert(name, encode(value).as_str());
            }
        };
        put("ce-specversion", "1.0");
        put("ce-id", &self.id);
        put("ce-type", &self.type_name);
        put("ce-source", &self.source);
        put("ce-subject", &self.subject);
        put("ce-datacontenttype", "application/json");
        let time = self
            .time
            .and_then(|time| jiff::Timestamp::try_from(time).ok());
        put(
            "ce-time",
            &time.map(|time| time.to_string()).unwrap_or_default(),
        );
        put("Nats-Msg-Id", &self.id);
        put(TRACEPARENT, &self.traceparent);
        headers
    }
}

#[derive(Deserialize)]
struct Structured {
    #[serde(rename = "type")]
    type_name: String,
    id: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    time: Option<jiff::Timestamp>,
    #[serde(default)]
    traceparent: String,
    data: serde_json::Value,
}

/// Returns an event's metadata and body.
pub(super) fn read(headers: &HeaderMap, payload: &[u8]) -> Result<(Metadata, Bytes)> {
    let content_type = header(headers, "content-type")
        .unwrap_or_default()
        .to_ascii_lowercase();
    if content_type.starts_with("application/cloudevents") {
        let event: Structured = serde_json::from_slice(payload)?;
        let hop = header(headers, TRACEPARENT).map(str::to_owned);
        let meta = Metadata {
            id: event.id,
            type_name: event.type_name,
            source: event.source,
            subject: event.subject,
            time: event.time.map(SystemTime::from),
            traceparent: hop.unwrap_or(event.traceparent),
            sequence: 0,
        };
        return Ok((meta, serde_json::to_vec(&event.data)?.into()));
    }
    let get = |name| {
        header(headers, name)
            .map(decode)
            .transpose()
            .map(Option::unwrap_or_default)
    };
    let meta = Metadata {
        id: get("ce-id")?,
        type_name: get("ce-type")?,
        source: get("ce-source")?,
        subject: get("ce-subject")?,
        time: get("ce-time")?
            .parse::<jiff::Timestamp>()
            .ok()
            .map(SystemTime::from),
        traceparent: get(TRACEPARENT)?,
        sequence: 0,
    };
    if meta.type_name.is_empty() {
        return Err(Error::invalid("ce-type", "the message is no CloudEvent"));
    }
    Ok((meta, Bytes::copy_from_slice(payload)))
}

/// Returns a header's value. Names of headers have no case in NATS and CloudEvents, but the
/// client's look-up is case-sensitive.
#[must_use]
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    if let Some(value) = headers.get(name) {
        return Some(value.as_str());
    }
    let same = |other: &str| other.eq_ignore_ascii_case(name);
    let (_, values) = headers.iter().find(|(other, _)| same(other.as_ref()))?;
    values.first().map(|value| value.as_str())
}

/// Percent-encodes space, `"`, `%` and everything outside U+0021 to U+007E.
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => encoded.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Undoes one round of percent-encoding; a `%` without two digits stands for itself.
fn decode(value: &str) -> Result<String> {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = digits.and_then(|two| {
            let text = std::str::from_utf8(two)
                .ok()
                .filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(text, 16).ok()
        });
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).map_err(|_| Error::invalid("headers", "a header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_follows_the_binding() {
        let table = [
            ("plain", "plain"),
            ("a b", "a%20b"),
            ("\"100%\"", "%22100%25%22"),
            ("研", "%E7%A0%94"),
            ("a/b?c=d", "a/b?c=d"),
            ("\n", "%0A"),
        ];
        for (value, encoded) in table {
            assert_eq!(encode(value), encoded);
            assert_eq!(decode(encoded).unwrap(), value);
        }
        assert_eq!(decode("50%").unwrap(), "50%");
        assert_eq!(decode("%zz").unwrap(), "%zz");
        assert!(decode("%FF").is_err());
    }
}
