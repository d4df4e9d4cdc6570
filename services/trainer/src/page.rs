//! Pages of a list that is at hand: a token is the key of the last entry given, so that entries
//! which come or go meanwhile shift nothing.

use togi_runtime::rpc;

use crate::error::{Error, Result};

/// Returns a page of `entries` and the token of the next one, empty on the last. `key` is an
/// entry's own, unique key.
///
/// # Errors
/// `InvalidArgument` with `page_size` or `page_token`.
pub(crate) fn page<T>(
    entries: Vec<T>,
    key: impl Fn(&T) -> String,
    page_size: i32,
    token: &str,
) -> Result<(Vec<T>, String)> {
    let size = rpc::page::size(page_size)?;
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
    use togi_runtime::Class;

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
            let refused = page(entries(), |e| (*e).to_owned(), wrong, "").unwrap_err();
            assert_eq!(refused.class(), Class::InvalidArgument);
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
