//! The map of the code in ARCHITECTURE.md: what it names exists, and it names every crate.

use std::collections::BTreeSet;
use std::fs;

use togi_tests::workspace;

use crate::source::{self, File};

const PAGE: &str = "ARCHITECTURE.md";

/// Paths in backquotes that do not exist, and crates that the page does not name. A path may leave
/// out its first folders, as `rpc/` does.
pub(crate) fn wrong_paths(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for page in files.iter().filter(|file| file.name == PAGE) {
        let named = named(&page.text);
        let existing = existing();
        for path in &named {
            let exists = |known: &String| {
                let before = known.strip_suffix(path.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
            };
            if !existing.iter().any(exists) {
                offenders.push(format!("{PAGE} names {path}, which does not exist"));
            }
        }
        let crates = existing.iter().filter(|path| {
            matches!(path.split_once('/'), Some(("crates" | "services", name)) if !name.contains('/'))
        });
        for path in crates.filter(|path| !named.contains(*path)) {
            offenders.push(format!("{PAGE} does not name {path}"));
        }
    }
    offenders
}

/// Returns the paths in backquotes, without a final slash, outside blocks of code.
fn named(page: &str) -> BTreeSet<String> {
    let prose = page.split("```").step_by(2);
    let quoted = prose.flat_map(|text| text.split('`').skip(1).step_by(2));
    let is_path = |text: &&str| {
        let plain = !text.contains([' ', '*', '<', ':']);
        let ending = [".rs", ".md", ".toml", ".proto"];
        plain && (text.contains('/') || ending.iter().any(|end| text.ends_with(end)))
    };
    let paths = quoted.filter(is_path);
    paths
        .map(|path| path.trim_end_matches('/').to_owned())
        .collect()
}

/// Returns the files and folders of the workspace, but for hidden ones and what is built.
fn existing() -> BTreeSet<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(workspace()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            source::walk(&path, &mut found);
        } else {
            found.push(path);
        }
    }
    let mut existing = BTreeSet::new();
    for path in &found {
        let relative = path.strip_prefix(workspace()).unwrap();
        for part in relative.ancestors() {
            existing.insert(part.to_string_lossy().into_owned());
        }
    }
    existing.remove("");
    assert!(existing.len() > 500, "only {} paths", existing.len());
    existing
}
