//! What a file imports: the paths of its `use` declarations and those in its code.

use crate::source::{self, File};

/// A path that a file names, and the line.
pub(crate) struct Path {
    pub(crate) parts: Vec<String>,
    pub(crate) line: usize,
}

/// Returns the declarations `use …;` of bare code with where each starts.
fn declarations(bare: &str) -> Vec<(usize, &str)> {
    let starts = bare.match_indices("use ").filter(|(at, _)| {
        let before = bare[..*at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    });
    starts
        .filter_map(|(at, _)| Some((at, bare[at + 4..].split_once(';')?.0)))
        .collect()
}

/// Returns the paths of a tree, without names after `as`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split_whitespace().collect()];
    };
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let prefix: String = prefix.split_whitespace().collect();
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(|part| paths(part))
        .map(|path| format!("{prefix}{path}"))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns every path that bare code names, by `use` or in passing.
pub(crate) fn all(bare: &str) -> Vec<Path> {
    let path = |text: &str, at: usize| Path {
        parts: text.split("::").map(str::to_owned).collect(),
        line: source::line(bare, at),
    };
    let mut found = Vec::new();
    let mut rest = bare.to_owned();
    for (at, tree) in declarations(bare) {
        found.extend(paths(tree).iter().map(|text| path(text, at)));
        let end = at + 4 + tree.len();
        let kept = |c: char| if c == '\n' { '\n' } else { ' ' };
        let blank: String = rest[at..end].chars().map(kept).collect();
        if blank.len() == end - at {
            rest.replace_range(at..end, &blank);
        }
    }
    for (at, _) in rest.match_indices("::") {
        let start = rest[..at].rfind(|c| !is_word(c)).map_or(0, |before| {
            before + rest[before..].chars().next().map_or(1, char::len_utf8)
        });
        // The first segment only: what follows belongs to the same path.
        if start == at || rest[..start].ends_with("::") {
            continue;
        }
        let end = rest[start..]
            .find(|c| !is_word(c) && c != ':')
            .map_or(rest.len(), |end| start + end);
        let text = rest[start..end].trim_end_matches(':');
        found.push(path(text, start));
    }
    found
}

/// Returns the re-exports of a file, as their last name and their path.
pub(crate) fn re_exports(bare: &str) -> Vec<(String, Vec<String>)> {
    let public = |at: usize| {
        let before = bare[..at].trim_end();
        before.ends_with("pub") || (before.ends_with(')') && before.contains("pub("))
    };
    declarations(bare)
        .into_iter()
        .filter(|(at, _)| public(*at))
        .flat_map(|(_, tree)| paths(tree))
        .filter_map(|path| {
            let parts: Vec<String> = path.split("::").map(str::to_owned).collect();
            Some((parts.last()?.clone(), parts))
        })
        .collect()
}

/// Returns the imports with braces in braces: each module has its own `use`.
pub(crate) fn nested(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in files {
        let bare = source::bare(&file.text);
        for (at, tree) in declarations(&bare) {
            if tree.matches('{').count() > 1 {
                offenders.push(format!("{}:{}", file.name, source::line(&bare, at)));
            }
        }
    }
    offenders
}
