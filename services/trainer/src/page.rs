//! Pages of a list that is at hand: a token is the key of the last entry given, so that entries
//! which come or go meanwhile shift nothing.

use crate::error::{Error, Result};

const DEFAULT_ENTRIES: usize = 100;
const MOST_ENTRIES: i32 = 1000;

/// Returns a page of `entries` and the token of the next one, empty on the last. `key` is an
/// entry's own, unique key.
///
/// # Errors
/// [`Error::Invalid`] with `page_size` or `page_token`.
pub fn page<T>(
    entries: Vec<T>,
    key: impl Fn(&T) -> String,
    size: i32,
    token: &str,
) -> Result<(Vec<T>, String)> {
    let size = match size {
        0 => DEFAULT_ENTRIES,
        1..=MOST_ENTRIES => size as usize,
        _ => {
            return Err(Error::invalid(
                "page_size",
                format!("is {size}; it must be within 1 and {MOST_ENTRIES}"),
            ));
        }
    };
    let start = if token.is_empty() {
        0
    } else {
        let last = entries.iter().position(|entry| key(entry) == token);
        last.ok_or_else(|| Error::invalid("page_token", "names no entry that is still there"))? + 1
    };
    let more = entries.len() > start + size;
    let page: Vec<T> = entries.into_iter().skip(start).take(size).collect();
    let next = page.last().filter(|_| more).map_or_else(String::new, key);
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_without_a_gap() {
        let entries = || vec!["a", "b", "c"];
        let (first, token) = page(entries(), |e| (*e).to_owned(), 2, "").unwrap();
        assert_eq!((first, token.as_str()), (vec!["a", "b"], "b"));
        assert_eq!(
            page(entries(), |e| (*e).to_owned(), 2, &token).unwrap(),
            (vec!["c"], String::new())
        );
        assert_eq!(page(entries(), |e| (*e).to_owned(), 0, "").unwrap().1, "");
        for wrong in [-1, 1001] {
            assert!(matches!(
                page(entries(), |e| (*e).to_owned(), wrong, ""),
                Err(Error::Invalid {
                    field: "page_size",
                    ..
                })
            ));
        }
        assert!(matches!(
            page(entries(), |e| (*e).to_owned(), 2, "z"),
            Err(Error::Invalid {
                field: "page_token",
                ..
            })
        ));
    }
}
