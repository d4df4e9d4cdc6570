//! Rules of the house that a machine can check. Each check says how much it looked at, so that none passes by finding
//! nothing.

// The configuration's exception for tests sees test functions, not their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use togi_tests::workspace;

/// Source files of the workspace, relative to it, with their text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["proto", "crates", "services", "tests"] {
        walk(&workspace().join(folder), &mut found);
    }
    let mut files: Vec<_> = found
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let name = path
                .strip_prefix(workspace())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            (name, text)
        })
        .collect();
    files.sort();
    assert!(
        files.len() > 80,
        "only {} source files were found",
        files.len()
    );
    files
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// A file's text before its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/")
        || name.contains("/tests/")
        || name.ends_with("/tests.rs")
        || name.contains("/testing")
}

fn refuse(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n{}", offenders.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let offenders: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.trim_start().starts_with("//!"))
        .map(|(name, _)| name)
        .collect();
    refuse("these files do not open with //!", &offenders);
}

#[test]
fn no_file_grows_past_what_a_reader_holds() {
    let offenders: Vec<_> = sources()
        .into_iter()
        .map(|(name, text)| (code(&text).lines().count(), name))
        .filter(|(lines, _)| *lines > 450)
        .map(|(lines, name)| format!("{lines} {name}"))
        .collect();
    refuse(
        "these files are longer than 450 lines without their tests",
        &offenders,
    );
}

#[test]
fn dependencies_point_one_way() {
    let allowed = [
        ("proto", vec![]),
        ("crates/tokens", vec![]),
        ("crates/model", vec![]),
        ("crates/runtime", vec!["togi-proto"]),
        (
            "services/data-prep",
            vec!["togi-proto", "togi-tokens", "togi-runtime"],
        ),
        (
            "services/trainer",
            vec!["togi-proto", "togi-tokens", "togi-model", "togi-runtime"],
        ),
        (
            "services/inference",
            vec!["togi-proto", "togi-tokens", "togi-model", "togi-runtime"],
        ),
    ];
    let pure = ["tokio", "tonic", "async-nats", "object_store"];
    for (folder, allowed) in allowed {
        let text = fs::read_to_string(workspace().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        assert!(!dependencies.is_empty(), "{folder} has no dependencies");
        for name in dependencies.keys() {
            let ours = name.starts_with("togi-");
            assert!(
                !ours || allowed.contains(&name.as_str()),
                "{folder} must not depend on {name}"
            );
            let is_pure = folder == "crates/tokens" || folder == "crates/model";
            assert!(
                !is_pure || !pure.contains(&name.as_str()),
                "{folder} is pure: no {name}"
            );
        }
    }
}

#[test]
fn unsafe_code_has_one_home() {
    let offenders: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("crates/model/src/cuda/"))
        .filter(|(name, _)| name != "crates/model/src/mapped.rs" && !is_test(name))
        .filter(|(_, text)| text.contains("unsafe {") || text.contains("unsafe fn"))
        .map(|(name, _)| name)
        .collect();
    refuse(
        "unsafe outside model/src/cuda and model/src/mapped.rs",
        &offenders,
    );
}

#[test]
fn object_keys_and_subjects_are_spelled_in_one_place() {
    let keys = [
        "\"uploads/",
        "\"datasets/",
        "\"names/",
        "\"jobs/",
        "\"adapters/",
        "\"aliases/",
    ];
    let subjects = [
        "\"togi.events",
        "\"togi.jobs",
        "\"togi.progress",
        "\"togi.dead",
    ];
    let mut offenders = Vec::new();
    let spells = |name: &str| !is_test(name) && !name.starts_with("proto/");
    for (name, text) in sources().into_iter().filter(|(name, _)| spells(name)) {
        let code = code(&text);
        if name != "crates/runtime/src/layout.rs" && keys.iter().any(|key| code.contains(key)) {
            offenders.push(format!("{name}: builds an object key"));
        }
        if name != "crates/runtime/src/events.rs" && subjects.iter().any(|s| code.contains(s)) {
            offenders.push(format!("{name}: names a subject"));
        }
    }
    refuse(
        "layout.rs builds keys and events.rs names subjects, nothing else does",
        &offenders,
    );
}

#[test]
fn tests_wait_for_conditions() {
    let ignored = concat!("#[ign", "ore");
    let offenders: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| {
            text.contains(ignored) || text.contains("todo!(") && !text.contains("\"todo!(")
        })
        .map(|(name, _)| name)
        .filter(|name| name != "tests/tests/tidy.rs")
        .collect();
    refuse("ignored tests or unfinished code", &offenders);
}

#[test]
fn every_default_configuration_and_recipe_parses() {
    let mut found = Vec::new();
    for folder in ["crates", "services", "recipes"] {
        walk(&workspace().join(folder), &mut found);
    }
    let defaults: Vec<_> = found
        .iter()
        .filter(|path| path.ends_with("default.toml"))
        .collect();
    let recipes: Vec<_> = found
        .iter()
        .filter(|path| path.starts_with(workspace().join("recipes")))
        .collect();
    assert!(
        defaults.len() >= 3,
        "a default.toml for each service, found {defaults:?}"
    );
    assert!(recipes.len() >= 3, "three recipes, found {recipes:?}");
    for path in defaults.into_iter().chain(recipes) {
        let text = fs::read_to_string(path).unwrap();
        let parsed: Result<toml::Table, _> = toml::from_str(&text);
        assert!(parsed.is_ok(), "{}: {:?}", path.display(), parsed.err());
        assert!(text.contains('#'), "{} has no comments", path.display());
    }
}

/// Packages from elsewhere with their features, as a selection of the workspace builds them.
fn built(selection: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree", "--locked", "--prefix", "none", "--format", "{p} {f}",
        ])
        .args(selection)
        .current_dir(workspace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {errors}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|line| !line.is_empty() && !line.contains("(/"))
        .collect()
}

#[test]
fn demo_and_test_build_the_same_dependencies() {
    let demo = built(&["--package", "togi", "--edges", "normal,build"]);
    let test = built(&["--workspace", "--edges", "normal,build,dev"]);
    assert!(demo.len() > 300, "only {} packages", demo.len());
    // A feature that only a test asks for would have everything above it compiled twice.
    let twice: Vec<_> = demo.difference(&test).cloned().collect();
    refuse(
        "`make test` builds these otherwise than `make demo`",
        &twice,
    );
}
