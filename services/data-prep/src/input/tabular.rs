//! The shape of a table's records, by the names of its columns.

use togi_tokens::form::Form;
use togi_tokens::shape::Shape;

use crate::error::{Error, Result};

/// Most columns of a table that are shown.
const SHOWN_COLUMNS: usize = 8;
/// Most characters of a column's name that are shown.
const SHOWN_CHARACTERS: usize = 40;

/// Returns the shape that the request says or the columns tell.
///
/// # Errors
/// [`Error::NoColumn`] with the columns that are there, if those of the records are not.
pub(super) fn shape(said: Option<&Shape>, columns: &[String]) -> Result<Shape> {
    let has = |name: &str| columns.iter().any(|column| column == name);
    let shape = match said {
        Some(said) => said.clone(),
        None => Shape::detected(Form::of_columns(has).unwrap_or(Form::Alpaca)),
    };
    match shape
        .required()
        .into_iter()
        .find(|(_, theirs)| !has(theirs))
    {
        None => Ok(shape),
        Some((ours, theirs)) => Err(Error::NoColumn {
            column: theirs.to_owned(),
            there: shown(columns),
            ours,
        }),
    }
}

fn shown(columns: &[String]) -> String {
    let short = |name: &String| name.chars().take(SHOWN_CHARACTERS).collect::<String>();
    let mut names: Vec<String> = columns.iter().take(SHOWN_COLUMNS).map(short).collect();
    if columns.len() > SHOWN_COLUMNS {
        names.push("…".to_owned());
    }
    names.join(", ")
}
