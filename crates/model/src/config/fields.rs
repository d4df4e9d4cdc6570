//! Typed access to the fields of a JSON file of transformers, with errors that name the field.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Typed access to an object; `null` is the same as absent.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        default: Option<T>,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T> {
        match self.get(name) {
            Some(value) => {
                read(value).ok_or_else(|| Error::Config(format!("{name} is not {kind}: {value}")))
            }
            None => default.ok_or_else(|| Error::Config(format!("{name} is missing"))),
        }
    }

    pub(super) fn count(&self, name: &str, default: Option<usize>) -> Result<usize> {
        self.typed(name, "a count", default, |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(super) fn number(&self, name: &str, default: f64) -> Result<f64> {
        self.typed(name, "a number", Some(default), Value::as_f64)
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        self.typed(name, "true or false", Some(default), Value::as_bool)
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        self.typed(name, "a text", Some(default), Value::as_str)
    }

    /// A token id. An absent field has the default, `null` is no id, and of a list the first
    /// counts.
    pub(super) fn id(&self, name: &str, default: Option<u32>) -> Result<Option<u32>> {
        Ok(self.ids(name, default.as_slice())?.first().copied())
    }

    /// Token ids: one, or a list. An absent field has the default, and `null` is no id.
    pub(super) fn ids(&self, name: &str, default: &[u32]) -> Result<Vec<u32>> {
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| Error::Config(format!("{name} is not a token id: {value}")))
        };
        match self.0.get(name) {
            None => Ok(default.to_vec()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}
