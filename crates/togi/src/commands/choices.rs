//! How the command line reads a choice that a request names by a word.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Returns the parser of a choice with these names; any other word is an error that lists them.
pub(crate) fn choice<T: Clone + Send + Sync + 'static>(
    names: [&'static str; 2],
    from_name: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    let parser = PossibleValuesParser::new(names);
    parser.try_map(move |name| from_name(&name).ok_or_else(|| format!("{name:?} is no choice")))
}
