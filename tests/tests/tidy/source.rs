//! The text of the repository, as the rules read it.

use std::fs;
use std::path::{Path, PathBuf};

use togi_tests::workspace;

/// A file by its path from the workspace's root.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl File {
    /// Returns the text before the unit tests.
    pub(crate) fn code(&self) -> &str {
        self.text
            .split("#[cfg(test)]\nmod ")
            .next()
            .unwrap_or(&self.text)
    }

    /// Returns whether the file only serves tests.
    pub(crate) fn is_test(&self) -> bool {
        self.name.starts_with("tests/")
            || self.name.starts_with("crates/testing/")
            || self.name.contains("/tests/")
            || self.name.ends_with("/tests.rs")
            || self.name.contains("/testing")
    }

    /// Returns whether the file's name ends in one of these.
    pub(crate) fn ends_with(&self, extensions: &[&str]) -> bool {
        extensions.iter().any(|end| self.name.ends_with(end))
    }
}

/// Reads every file of these folders whose name ends in one of `extensions`, sorted by name.
pub(crate) fn read(folders: &[&str], extensions: &[&str]) -> Vec<File> {
    let mut paths = Vec::new();
    for folder in folders {
        walk(&workspace().join(folder), &mut paths);
    }
    let mut files: Vec<_> = paths
        .into_iter()
        .filter_map(|path| {
            let name = path.strip_prefix(workspace()).ok()?.to_str()?.to_owned();
            if !extensions.iter().any(|end| name.ends_with(end)) {
                return None;
            }
            let text = fs::read_to_string(&path).unwrap();
            Some(File { name, text })
        })
        .collect();
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

/// Reads the Rust files of the workspace.
pub(crate) fn rust() -> Vec<File> {
    let files = read(&["proto", "crates", "services", "tests"], &[".rs"]);
    let count = files.len();
    assert!(count > 300, "only {count} source files were found");
    files
}

/// Reads all that is written by hand: code, its settings, and prose.
pub(crate) fn written() -> Vec<File> {
    let mut files = rust();
    let folders = [
        "crates",
        "services",
        "proto/togi",
        "tools",
        "docs",
        "recipes",
    ];
    let kinds = [".cu", ".cuh", ".proto", ".py", ".toml", ".md"];
    files.extend(read(&folders, &kinds));
    for name in ["ARCHITECTURE.md", "CONTRIBUTING.md", "Makefile"] {
        let text = fs::read_to_string(workspace().join(name)).unwrap();
        files.push(File {
            name: name.to_owned(),
            text,
        });
    }
    files
}

/// Collects the files under a folder.
pub(crate) fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Returns Rust code without comments, texts and characters; line breaks stay.
pub(crate) fn bare(code: &str) -> String {
    let chars: Vec<char> = code.chars().collect();
    let mut bare = String::with_capacity(code.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end == at {
            bare.push(chars[at]);
            at += 1;
        } else {
            let kept = |c: &char| if *c == '\n' { '\n' } else { ' ' };
            bare.extend(chars[at..end].iter().map(kept));
            at = end;
        }
    }
    bare
}

/// Returns the end of the comment, text or character that starts at `at`, or `at`.
fn skipped(chars: &[char], at: usize) -> usize {
    let is = |offset: usize, c: char| chars.get(at + offset) == Some(&c);
    let word_before = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if is(0, '/') && is(1, '/') {
        return find(chars, at, "\n");
    }
    if is(0, '/') && is(1, '*') {
        return (find(chars, at + 2, "*/") + 2).min(chars.len());
    }
    if is(0, 'r') && !word_before {
        let marks = chars[at + 1..].iter().take_while(|c| **c == '#').count();
        if is(1 + marks, '"') {
            let end = format!("\"{}", "#".repeat(marks));
            return (find(chars, at + marks + 2, &end) + end.len()).min(chars.len());
        }
    }
    if is(0, '"') {
        let mut end = at + 1;
        while end < chars.len() && chars[end] != '"' {
            end += if chars[end] == '\\' { 2 } else { 1 };
        }
        return (end + 1).min(chars.len());
    }
    if is(0, '\'') && is(1, '\\') {
        return (find(chars, at + 3, "'") + 1).min(chars.len());
    }
    if is(0, '\'') && is(2, '\'') {
        return at + 3;
    }
    at
}

/// Returns where `text` starts at or after `from`, or the end.
fn find(chars: &[char], from: usize, text: &str) -> usize {
    let text: Vec<char> = text.chars().collect();
    let from = from.min(chars.len());
    chars[from..]
        .windows(text.len())
        .position(|window| window == text)
        .map_or(chars.len(), |found| from + found)
}

/// Returns bare code with everything under `#[cfg(test)]` blanked.
pub(crate) fn without_tests(bare: &str) -> String {
    let mut text = bare.to_owned();
    while let Some(start) = text
        .find("#[cfg(test)]")
        .or_else(|| text.find("#[cfg(all(test"))
    {
        let body = start + text[start..].find(']').map_or(0, |end| end + 1);
        let mut depth = 0_i32;
        let mut end = text.len();
        for (offset, c) in text[body..].char_indices() {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                _ => {}
            }
            if (c == '}' && depth <= 0) || (c == ';' && depth == 0) {
                end = body + offset + c.len_utf8();
                break;
            }
        }
        let kept = |c: char| if c == '\n' { '\n' } else { ' ' };
        let blank: String = text[start..end].chars().map(kept).collect();
        text.replace_range(start..end, &blank);
    }
    text
}

/// Returns the number of the line in which a position of a text stands, from 1.
pub(crate) fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}
