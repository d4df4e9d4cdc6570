//! The Dockerfile copies every manifest before the sources, and every file that the sources
//! include.

use std::path::{Component, Path, PathBuf};

use togi_tests::workspace;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The members' folders.
fn members() -> Vec<PathBuf> {
    let manifest: toml::Table = read(&workspace().join("Cargo.toml")).parse().unwrap();
    let listed = manifest["workspace"]["members"].as_array().unwrap();
    let of = |pattern: &toml::Value| -> Vec<PathBuf> {
        let pattern = pattern.as_str().unwrap();
        let Some(parent) = pattern.strip_suffix("/*") else {
            return vec![pattern.into()];
        };
        let entries = std::fs::read_dir(workspace().join(parent)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.map(|name| Path::new(parent).join(name)).collect()
    };
    listed.iter().flat_map(of).collect()
}

/// The Rust sources below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            sources(&entry.path(), found);
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            found.push(entry.path());
        }
    }
}

/// Returns a path with its `..` resolved.
fn straight(path: &Path) -> PathBuf {
    let mut straight = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            straight.pop();
        } else {
            straight.push(part);
        }
    }
    straight
}

#[test]
fn every_members_manifest_comes_before_the_sources() {
    let dockerfile = read(&workspace().join("deploy/Dockerfile"));
    for member in members() {
        let member = member.display();
        let copied = format!("COPY {member}/Cargo.toml {member}/\n");
        assert!(dockerfile.contains(&copied), "{copied:?} is missing");
    }
}

#[test]
fn every_file_that_sources_take_in_is_in_the_context() {
    let listed = read(&workspace().join("deploy/Dockerfile.dockerignore"));
    let context: Vec<PathBuf> = listed
        .lines()
        .filter_map(|line| Some(workspace().join(line.strip_prefix('!')?)))
        .collect();
    let mut checked = 0;
    for member in members()
        .iter()
        .filter(|member| !member.starts_with("tests"))
    {
        let mut files = Vec::new();
        sources(&workspace().join(member).join("src"), &mut files);
        for file in files {
            let text = read(&file);
            let taken = text
                .split("include_str!(\"")
                .chain(text.split("include_bytes!(\""));
            for name in taken.filter_map(|rest| rest.split_once("\")").map(|(name, _)| name)) {
                if !name.starts_with("../") || name.contains('\n') {
                    continue;
                }
                let path = straight(&file.parent().unwrap().join(name));
                let is_there = context.iter().any(|folder| path.starts_with(folder));
                assert!(is_there, "{} is not in the context", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 5, "{checked} files");
}
