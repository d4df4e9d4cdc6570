//! The known name that a misspelled one is nearest to, for the message of an error.

/// Least similarity of a suggestion, from 0 to 1.
const SIMILAR: f64 = 0.8;

/// Returns the end of a sentence that names the nearest known name; empty if none is near.
#[must_use]
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match near {
        Some((_, known)) => format!("; did you mean {known:?}?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let known = ["demo-cpu", "rinna-3.6b-bf16", "mine"];
        for (name, expected) in [
            ("demo-cp", "; did you mean \"demo-cpu\"?"),
            ("mien", "; did you mean \"mine\"?"),
            ("rinna-bf16", "; did you mean \"rinna-3.6b-bf16\"?"),
            ("zzz", ""),
            ("", ""),
        ] {
            assert_eq!(suggestion(name, known), expected, "{name}");
        }
        assert_eq!(suggestion("mine", []), "");
    }
}
