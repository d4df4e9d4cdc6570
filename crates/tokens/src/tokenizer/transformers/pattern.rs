//! Regular expressions as text, in what Oniguruma and fancy-regex both read: every character is
//! written by its number.

use std::collections::BTreeSet;
use std::fmt::Write;

/// A text that matches itself.
pub(super) fn literal(text: &str) -> String {
    text.chars().fold(String::new(), |mut pattern, c| {
        // Writing to a String cannot fail.
        let _ = write!(pattern, "\\x{{{:X}}}", u32::from(c));
        pattern
    })
}

/// The inside of a class: ranges of neighbours.
pub(super) fn ranges<'a>(chars: impl IntoIterator<Item = &'a char>) -> String {
    let sorted: BTreeSet<u32> = chars.into_iter().map(|c| u32::from(*c)).collect();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for code in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == code => *last = code,
            _ => runs.push((code, code)),
        }
    }
    runs.into_iter()
        .fold(String::new(), |mut pattern, (first, last)| {
            let _ = if first == last {
                write!(pattern, "\\x{{{first:X}}}")
            } else {
                write!(pattern, "\\x{{{first:X}}}-\\x{{{last:X}}}")
            };
            pattern
        })
}

/// A class of characters.
pub(super) fn class<'a>(chars: impl IntoIterator<Item = &'a char>) -> String {
    format!("[{}]", ranges(chars))
}

/// One of several patterns.
pub(super) fn any(patterns: &[String]) -> String {
    patterns.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_written_by_their_numbers() {
        assert_eq!(literal("<が"), r"\x{3C}\x{304C}");
        assert_eq!(class(&['b', 'a', 'c', 'x']), r"[\x{61}-\x{63}\x{78}]");
    }
}
