//! Recipe and policy files: the TOML form of their messages, with the messages' field names. A
//! recipe may also be given by its name or its file's path.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use togi_common::nearest;
use togi_proto::trainer::v1::{Policy, Recipe};

use crate::embedded;
use crate::error::{Error, Result};

/// Reads a recipe from a file, or an embedded one by its name.
///
/// # Errors
/// [`Error::File`] if neither exists, [`Error::Configuration`] for an invalid file.
pub fn recipe(name: &Path) -> Result<Recipe> {
    recipe_in(Path::new(""), name)
}

/// Reads a recipe that a file in `folder` names.
fn recipe_in(folder: &Path, name: &Path) -> Result<Recipe> {
    let path = folder.join(name);
    let embedded = name
        .to_str()
        .and_then(embedded::recipe)
        .filter(|_| !path.exists());
    match embedded {
        Some(text) => parse(name, text),
        None => parse(
            &path,
            &read(&path).map_err(|error| with_names(name, error))?,
        ),
    }
}

/// Names the embedded recipes in the error of a missing file that could be one of them.
fn with_names(name: &Path, error: Error) -> Error {
    let text = name.to_string_lossy();
    match &error {
        Error::File { source, .. }
            if source.kind() == io::ErrorKind::NotFound && !text.contains('/') =>
        {
            let names = embedded::RECIPES.map(|(name, _)| name);
            let near = nearest::suggestion(&text, names);
            let known = names.join(", ");
            Error::Missing(format!(
                "{text}: neither a file nor one of the recipes {known}{near}"
            ))
        }
        _ => error,
    }
}

/// Reads a policy from a file.
///
/// # Errors
/// As [`recipe`].
pub fn policy(path: &Path) -> Result<Policy> {
    let mut table = table(path, &read(path)?)?;
    let recipe = take_recipe(path, &mut table)?;
    let policy: Policy = message(path, table)?;
    Ok(Policy {
        recipe: recipe.or(policy.recipe),
        ..policy
    })
}

/// Removes the key `recipe` from a file's table and reads it, if it names a recipe instead of being
/// one.
///
/// # Errors
/// As [`recipe`].
pub(crate) fn take_recipe(path: &Path, table: &mut toml::Table) -> Result<Option<Recipe>> {
    let Some(toml::Value::String(name)) = table.get("recipe") else {
        return Ok(None);
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let recipe = recipe_in(folder, Path::new(name))?;
    table.remove("recipe");
    Ok(Some(recipe))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::file(path, error))
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    message(path, table(path, text)?)
}

pub(crate) fn table(path: &Path, text: &str) -> Result<toml::Table> {
    text.parse()
        .map_err(|error| Error::toml(path, text, &error))
}

/// Converts TOML to a message through proto3's JSON, which refuses unknown names.
pub(crate) fn message<T: DeserializeOwned>(path: &Path, table: toml::Table) -> Result<T> {
    let json = json(toml::Value::Table(table)).map_err(|problem| wrong(path, &problem))?;
    serde_json::from_value(json).map_err(|error| wrong(path, &error.to_string()))
}

fn wrong(path: &Path, problem: &str) -> Error {
    Error::Configuration(format!("{}: {problem}", path.display()))
}

/// Converts a value; NaN and infinities become strings, as in proto3's JSON.
fn json(value: toml::Value) -> std::result::Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => match serde_json::Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None if number.is_nan() => Value::from("NaN"),
            None if number > 0.0 => Value::from("Infinity"),
            None => Value::from("-Infinity"),
        },
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => return Err(format!("a time ({time}) has no place here")),
        toml::Value::Array(values) => Value::Array(
            values
                .into_iter()
                .map(json)
                .collect::<std::result::Result<_, _>>()?,
        ),
        toml::Value::Table(table) => {
            let pairs = table
                .into_iter()
                .map(|(key, value)| Ok((key, json(value)?)));
            Value::Object(pairs.collect::<std::result::Result<_, String>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Recipe> {
        parse(Path::new("x.toml"), text)
    }

    #[test]
    fn a_recipe_has_the_names_of_its_message() {
        let recipe =
            parsed("name = 'x'\nlearning_rate = 2e-3\nepochs = 3\n[lora]\nrank = 8\nalpha = 32\n")
                .unwrap();
        assert_eq!(recipe.learning_rate, Some(2e-3));
        assert_eq!(recipe.lora.unwrap().alpha, Some(32.0));
        assert_eq!(recipe.max_steps, None);
    }

    #[test]
    fn a_wrong_name_and_a_wrong_type_are_refused() {
        for text in [
            "learning_rat = 1",
            "[lora]\nrang = 8",
            "epochs = 'many'",
            "epochs = -1",
            "epochs = 2026-01-01",
        ] {
            let error = parsed(text).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{text}");
            assert!(error.to_string().starts_with("x.toml"), "{error}");
        }
        assert!(
            parsed("learning_rat = 1")
                .unwrap_err()
                .to_string()
                .contains("learning_rat")
        );
    }

    #[test]
    fn not_a_number_travels_to_the_service_that_refuses_it() {
        assert!(
            parsed("learning_rate = nan")
                .unwrap()
                .learning_rate
                .unwrap()
                .is_nan()
        );
    }

    #[test]
    fn embedded_recipes_are_found_by_name_and_missing_files_are_not() {
        for name in embedded::RECIPES.iter().map(|(name, _)| name) {
            assert_eq!(recipe(Path::new(name)).unwrap().name, *name);
        }
        let missing = recipe(Path::new("demo-cp")).unwrap_err();
        assert_eq!(missing.exit_code(), 3);
        let says = "demo-cp: neither a file nor one of the recipes demo-cpu, rinna-3.6b-article, \
                    rinna-3.6b-a100, rinna-3.6b-bf16; did you mean \"demo-cpu\"?";
        assert_eq!(missing.to_string(), says);
        let path = recipe(Path::new("recipes/none.toml")).unwrap_err();
        assert!(matches!(path, Error::File { .. }), "{path}");
    }
}
