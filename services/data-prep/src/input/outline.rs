//! Recognises JSON that is no list of records by its first bytes, to say what to do once all its
//! records were rejected. JSON Lines may begin in the same way, so that nothing is refused by it.

use togi_tokens::form::Form;
use togi_tokens::record::JsonStrings;

/// Returns a hint about a text that begins with an object.
pub(super) fn hint(prefix: &[u8]) -> Option<String> {
    let text = prefix.trim_ascii_start();
    let inside = text.strip_prefix(b"{")?.trim_ascii_start();
    let (key, value) = first_entry(inside)?;
    let of_form = Form::ALL.iter().any(|form| form.marks().contains(&key));
    let nested = value.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    if !of_form && nested.is_some_and(|inside| inside.starts_with(b"{")) {
        return Some(format!(
            "the file is one object whose {key:?} holds the records; write the list alone, for \
             example with `jq .{key} FILE`"
        ));
    }
    let index = value.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    if index.is_some_and(|inside| inside.starts_with(b"\"0\"")) {
        let text = "the file holds a table by its columns, as pandas writes it; write it with \
                    to_json(FILE, orient=\"records\", lines=True, force_ascii=False)";
        return Some(text.to_owned());
    }
    let first_line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if text.contains(&b'\n') && first_line.trim_ascii() == b"{" {
        let text = "the file's objects go over several lines, and JSON Lines has one on each; \
                    write them with `jq -c . FILE`, or as one array";
        return Some(text.to_owned());
    }
    None
}

/// The first key of an object, and the text from its value on.
fn first_entry(inside: &[u8]) -> Option<(&str, &[u8])> {
    let mut strings = JsonStrings::default();
    let colon = inside.iter().position(|&byte| {
        let outside = strings.take(byte);
        outside && byte == b':'
    })?;
    let key = inside[..colon].trim_ascii();
    let key = key.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let key = std::str::from_utf8(key).ok()?;
    Some((key, inside[colon + 1..].trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_no_list_of_records_is_told() {
        let table = [
            ("{\"data\": [{\"instruction\": \"q\"}]}", "jq .data FILE"),
            ("{\n \"rows\" : [ {", "jq .rows FILE"),
            ("{\"instruction\":{\"0\":\"q\",\"1\":", "orient=\"records\""),
            ("{\n  \"instruction\": \"q\",\n", "several lines"),
        ];
        for (text, says) in table {
            let hint = hint(text.as_bytes()).unwrap_or_default();
            assert!(hint.contains(says), "{text}: {hint}");
        }
        for text in [
            "",
            "{",
            "{}",
            "[{\"a\": [{}]}]",
            "{\"instruction\": \"q\"}\n{",
            "{\"messages\": [{\"role\": \"user\"",
            "{\"tags\": [1]}",
        ] {
            assert_eq!(hint(text.as_bytes()), None, "{text}");
        }
    }
}
