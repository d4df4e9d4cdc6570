//! Merges the sources of a configuration. An error names the wrong variable, or the file and line,
//! with the value and the allowed ones.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::{Class, Error, Result};

/// Words in the names of variables whose values must not be logged.
const SECRET: [&str; 6] = [
    "SECRET",
    "KEY",
    "TOKEN",
    "PASSWORD",
    "CREDENTIAL",
    "OPTIONS",
];

/// Returns the configuration: the default, then each file, then the environment's
/// `<PREFIX>_SECTION__KEY`; later sources override earlier ones. A variable without `__` sets a
/// setting outside the sections. `check` checks the values' ranges.
///
/// # Errors
/// `InvalidArgument`, in one line, about a file that is missing or not TOML, or about the variable
/// or line with an unknown key, a wrong type or a value out of range. The process then exits with
/// [`super::EXIT_CODE`].
pub fn load<T: DeserializeOwned>(
    default_toml: &str,
    files: &[PathBuf],
    env_prefix: &str,
    check: impl Fn(&T) -> Result<()>,
) -> Result<T> {
    load_from(default_toml, files, env_prefix, std::env::vars(), check)
}

/// Returns the configuration of files alone; later files override earlier ones.
///
/// # Errors
/// As [`load`].
pub fn load_files<T: DeserializeOwned>(files: &[PathBuf]) -> Result<T> {
    load_from("", files, "", std::iter::empty(), |_: &T| Ok(()))
}

pub(super) fn load_from<T: DeserializeOwned>(
    default_toml: &str,
    files: &[PathBuf],
    env_prefix: &str,
    variables: impl Iterator<Item = (String, String)>,
    check: impl Fn(&T) -> Result<()>,
) -> Result<T> {
    let sources = Sources::read(default_toml, files, env_prefix, variables)?;
    let valid = |of: Of| {
        let table = sources.merged(of).map_err(Problem::of_error)?;
        let config: T = Value::Table(table).try_into().map_err(Problem::of_toml)?;
        check(&config).map_err(Problem::of_error)?;
        Ok(config)
    };
    valid(Of::default()).map_err(|problem| sources.blame(&problem, |of| valid(of).is_ok()))
}

/// Returns the error's message after the variable's name, for a setting that is found wrong only in
/// use.
#[must_use]
pub fn named(error: &Error, env_prefix: &str) -> String {
    let Some(field) = error.field() else {
        return error.chain();
    };
    let variable = variable(env_prefix, field.split('.'));
    match std::env::var(&variable) {
        Ok(value) => format!("{}: {}", shown(&variable, &value), error.chain()),
        Err(_) => format!("{variable}: {}", error.chain()),
    }
}

struct Sources {
    prefix: String,
    default: Table,
    files: Vec<File>,
    variables: Vec<Variable>,
}

struct File {
    shown: String,
    text: String,
    table: Table,
}

struct Variable {
    name: String,
    /// Sections and key, in lower case.
    path: Vec<String>,
    value: String,
}

/// A subset of the sources.
#[derive(Clone, Copy, Default)]
struct Of {
    without_file: Option<usize>,
    without_variable: Option<usize>,
    without_variables: bool,
}

/// A fault in a setting.
struct Problem {
    path: Vec<String>,
    message: String,
}

impl Problem {
    fn of_toml(error: toml::de::Error) -> Self {
        let text = error.to_string();
        let place = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("in `"));
        let place = place.map(|place| place.trim_end_matches('`'));
        let mut path: Vec<String> = place
            .map(|place| place.split('.').map(str::to_owned).collect())
            .unwrap_or_default();
        let message = error.message().replace('\n', ", ");
        let unknown = message.strip_prefix("unknown field `");
        if let Some((field, _)) = unknown.and_then(|rest| rest.split_once('`')) {
            path.push(field.to_owned());
        }
        Self { path, message }
    }

    fn of_error(error: Error) -> Self {
        let field = error.field().unwrap_or_default();
        let parts = field.split('.').filter(|part| !part.is_empty());
        Self {
            path: parts.map(str::to_owned).collect(),
            message: error.chain(),
        }
    }

    fn is_at(&self, path: &[String]) -> bool {
        let alike = |(a, b): (&String, &String)| a.replace('-', "_") == b.replace('-', "_");
        self.path.len() == path.len() && self.path.iter().zip(path).all(alike)
    }
}

impl Sources {
    fn read(
        default_toml: &str,
        files: &[PathBuf],
        prefix: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self> {
        let default = parse("the default configuration", default_toml)?;
        let files = files
            .iter()
            .map(|path| File::read(path))
            .collect::<Result<Vec<_>>>()?;
        let is_setting = |path: &str| {
            let known = |table: &Table| table.get(path).is_some_and(|value| !value.is_table());
            path.contains("__") || known(&default) || files.iter().any(|file| known(&file.table))
        };
        let mut variables: Vec<_> = variables
            .filter_map(|(name, value)| {
                let path = name.strip_prefix(prefix)?.strip_prefix('_')?;
                let path = path.to_ascii_lowercase();
                is_setting(&path).then(|| Variable {
                    path: path.split("__").map(str::to_owned).collect(),
                    name,
                    value,
                })
            })
            .collect();
        variables.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            prefix: prefix.to_owned(),
            default,
            files,
            variables,
        })
    }

    fn merged(&self, of: Of) -> Result<Table> {
        let mut merged = self.default.clone();
        for (at, file) in self.files.iter().enumerate() {
            if of.without_file != Some(at) {
                merge(&mut merged, file.table.clone());
            }
        }
        for (at, variable) in self.variables.iter().enumerate() {
            if !of.without_variables && of.without_variable != Some(at) {
                let path: Vec<&str> = variable.path.iter().map(String::as_str).collect();
                set(&mut merged, &path, &variable.value)?;
            }
        }
        Ok(merged)
    }

    /// Reports the source without which the configuration is valid, or else the source of the
    /// faulty setting.
    fn blame(&self, problem: &Problem, is_valid: impl Fn(Of) -> bool) -> Error {
        let alone = (0..self.variables.len()).find(|at| {
            is_valid(Of {
                without_variable: Some(*at),
                ..Of::default()
            })
        });
        let variables = self.variables.iter();
        let culprit = alone.map(|at| &self.variables[at]).or_else(|| {
            variables
                .rev()
                .find(|variable| problem.is_at(&variable.path))
        });
        if let Some(Variable { name, value, .. }) = culprit {
            let mut message = problem.message.clone();
            if is_secret(name, value) && !value.is_empty() {
                message = message.replace(value.as_str(), "…");
            }
            return wrong(format!("{}: {message}", shown(name, value)));
        }
        let file = (0..self.files.len()).find(|at| {
            is_valid(Of {
                without_file: Some(*at),
                without_variables: true,
                ..Of::default()
            })
        });
        let files = self.files.iter();
        let file = file
            .map(|at| &self.files[at])
            .or_else(|| files.rev().find(|file| file.line(&problem.path).is_some()));
        let setting = problem.path.join(".");
        let about = match setting.as_str() {
            "" => String::new(),
            setting if problem.message.contains(setting) => String::new(),
            setting => format!("{setting}: "),
        };
        match file {
            Some(file) => {
                let line = file.line(&problem.path);
                let line = line
                    .map(|line| format!(", line {line}"))
                    .unwrap_or_default();
                let shown = &file.shown;
                wrong(format!("{shown}{line}: {about}{}", problem.message))
            }
            None if setting.is_empty() => wrong(format!("configuration: {}", problem.message)),
            None => {
                let parts = problem.path.iter().map(String::as_str);
                let name = variable(&self.prefix, parts);
                wrong(format!("{name}: {about}{}", problem.message))
            }
        }
    }
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let shown = format!("configuration file {}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| wrong(format!("{shown} cannot be read: {}", error.kind())))?;
        Ok(Self {
            table: parse(&shown, &text)?,
            shown,
            text,
        })
    }

    /// Returns the line of a setting, from 1.
    fn line(&self, path: &[String]) -> Option<usize> {
        let root = toml::de::DeTable::parse(&self.text).ok()?.into_inner();
        let mut table = &root;
        let (last, sections) = path.split_last()?;
        for section in sections {
            let (_, value) = table.iter().find(|(key, _)| key.get_ref() == section)?;
            table = value.get_ref().as_table()?;
        }
        let (key, _) = table.iter().find(|(key, _)| key.get_ref() == last)?;
        Some(line_at(&self.text, key.span().start))
    }
}

fn line_at(text: &str, byte: usize) -> usize {
    text[..byte.min(text.len())].matches('\n').count() + 1
}

/// Returns the name of a setting's variable.
fn variable<'a>(prefix: &str, parts: impl Iterator<Item = &'a str>) -> String {
    let parts: Vec<&str> = parts.collect();
    let name = format!("{prefix}_{}", parts.join("__"));
    name.replace('-', "_").to_ascii_uppercase()
}

/// Formats a variable with its value, unless the value is secret.
fn shown(name: &str, value: &str) -> String {
    if is_secret(name, value) {
        format!("{name} (its value is not shown)")
    } else {
        format!("{name} is {value:?}")
    }
}

fn is_secret(name: &str, value: &str) -> bool {
    let has_user = value
        .split_once("://")
        .is_some_and(|(_, rest)| rest.contains('@'));
    has_user || SECRET.iter().any(|word| name.contains(word))
}

fn parse(what: &str, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(text, span.start));
        let message = error.message().replace('\n', ", ");
        wrong(format!("{what}, line {line}: {message}"))
    })
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Sets one value from the environment. If the current value is a string, the text is taken
/// unchanged; otherwise it is parsed as TOML, or taken as a string if it is not TOML.
fn set(table: &mut Table, path: &[&str], text: &str) -> Result<()> {
    let [key, rest @ ..] = path else {
        return Ok(());
    };
    if rest.is_empty() {
        let value = match table.get(*key) {
            Some(Value::String(_)) => Value::String(text.to_owned()),
            _ => format!("value = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut parsed| parsed.remove("value"))
                .unwrap_or_else(|| Value::String(text.to_owned())),
        };
        table.insert((*key).to_owned(), value);
        return Ok(());
    }
    // Keys such as base names have hyphens, which variables cannot have.
    let hyphened = key.replace('_', "-");
    let key = if !table.contains_key(*key) && table.contains_key(&hyphened) {
        hyphened
    } else {
        (*key).to_owned()
    };
    match table
        .entry(&key)
        .or_insert_with(|| Value::Table(Table::new()))
    {
        Value::Table(inner) => set(inner, rest, text),
        _ => Err(wrong(format!("{key} is a value, not a section"))),
    }
}

fn wrong(message: String) -> Error {
    Error::new(Class::InvalidArgument, message)
}
