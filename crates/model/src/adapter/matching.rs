//! The modules that names and patterns of `adapter_config.json` select: PEFT's rules, on a module's
//! full name such as `gpt_neox.layers.0.attention.dense`.

use regex::Regex;
use serde_json::Value;

use super::entries::Entries;
use super::files::refuse;
use crate::error::Result;

/// `target_modules` or `exclude_modules`.
pub(super) enum Selection {
    /// A list of full names, or ends of names after a point.
    Names(Vec<String>),
    /// A regular expression for the whole name.
    Whole(Regex),
}

impl Selection {
    /// Reads the value of a key; `null` selects nothing.
    pub(super) fn parse(key: &str, value: Option<&Value>) -> Result<Self> {
        match value {
            None | Some(Value::Null) => Ok(Self::Names(Vec::new())),
            Some(Value::String(text)) => Ok(Self::Whole(expression(key, text, "^(?:")?)),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                let names = list.iter().filter_map(Value::as_str);
                Ok(Self::Names(names.map(str::to_owned).collect()))
            }
            Some(other) => refuse(format!("{key} {other} is no list of modules")),
        }
    }

    pub(super) fn fit(&self, name: &str) -> bool {
        let ends = |end: &String| {
            name.strip_suffix(end.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        match self {
            Self::Names(ends_of_names) => ends_of_names.iter().any(ends),
            Self::Whole(expression) => expression.is_match(name),
        }
    }
}

/// `rank_pattern` or `alpha_pattern`: regular expressions for a name, or the end of a name after a
/// point. The first match in the file's order counts.
pub(super) struct Pattern(Vec<(Regex, f64)>);

impl Pattern {
    pub(super) fn parse(key: &str, entries: Option<Entries<f64>>) -> Result<Self> {
        let entries = entries.map(|entries| entries.0).unwrap_or_default();
        let compiled = entries
            .into_iter()
            .map(|(text, value)| Ok((expression(key, &text, r"^(?:.*\.)?(?:")?, value)));
        Ok(Self(compiled.collect::<Result<_>>()?))
    }

    pub(super) fn get(&self, name: &str) -> Option<f64> {
        let found = self.0.iter().find(|(end, _)| end.is_match(name));
        found.map(|&(_, value)| value)
    }
}

/// Compiles a Python expression between `before` and the name's end. Features that Rust's
/// expressions lack, such as look-around, are refused.
fn expression(key: &str, text: &str, before: &str) -> Result<Regex> {
    match Regex::new(&format!("{before}{text})$")) {
        Ok(expression) => Ok(expression),
        Err(_) => refuse(format!("{key} has {text:?}, which is not understood")),
    }
}
