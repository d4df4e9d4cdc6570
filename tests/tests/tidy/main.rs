//! Rules of the house that a machine can check. Each check says how much it looked at, so that none
//! passes by finding nothing, and each rule must see a changed copy that breaks it.

// The configuration's exception for tests sees test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod changes;
mod circles;
mod dependencies;
mod imports;
mod map;
mod rules;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use source::File;
use togi_tests::workspace;

fn refuse(what: &str, offenders: &[String]) {
    let count = offenders.len();
    assert!(
        offenders.is_empty(),
        "{what} ({count}):\n{}",
        offenders.join("\n")
    );
}

/// The manifests of the workspace's crates.
fn manifests() -> Vec<File> {
    let found = source::read(&["proto", "crates", "services", "tests"], &["/Cargo.toml"]);
    assert!(found.len() >= 9, "only {} crates were found", found.len());
    found
}

#[test]
fn each_rule_sees_what_breaks_it() {
    let mut files = source::written();
    let manifests = manifests();
    files.retain(|file| !file.name.ends_with("Cargo.toml"));
    files.extend(manifests.iter().cloned());
    for change in changes::ALL {
        // A rule looks at no more than one crate at a time.
        let part = |name: &str| name.split('/').take(2).collect::<Vec<_>>().join("/");
        let manifest = |name: &str| name.ends_with("Cargo.toml");
        let alike = |file: &&File| {
            part(&file.name) == part(change.file) && manifest(&file.name) == manifest(change.file)
        };
        let relevant: Vec<_> = files.iter().filter(alike).cloned().collect();
        let before = (change.rule)(&relevant);
        let after = (change.rule)(&changes::apply(&change, &relevant));
        let new = |line: &&String| !before.contains(line) && line.contains(change.reported);
        assert!(
            after.iter().any(|line| new(&line)),
            "{:?} in {} was not reported as {:?}: {after:#?}",
            change.before,
            change.file,
            change.reported
        );
    }
}

#[test]
fn the_map_of_the_code_is_complete_and_names_what_exists() {
    let offenders = map::wrong_paths(&source::written());
    refuse("the map of the code is wrong", &offenders);
}

#[test]
fn every_file_says_what_it_is() {
    let offenders = rules::without_purpose(&source::rust());
    refuse("these files do not open with //!", &offenders);
}

#[test]
fn no_file_grows_past_what_a_reader_holds() {
    let offenders = rules::long_files(&source::rust());
    refuse("these files are too long without their tests", &offenders);
}

#[test]
fn no_line_is_wider_than_a_hundred_columns() {
    let offenders = rules::wide_lines(&source::written());
    refuse("lines above 100 columns", &offenders);
}

#[test]
fn the_phrases_that_the_style_page_refuses_stay_away() {
    let offenders = rules::banned_phrases(&source::written());
    refuse("phrases with a plainer form in docs/style.md", &offenders);
}

#[test]
fn one_import_is_one_module() {
    let offenders = imports::nested(&source::rust());
    refuse("imports with nested braces", &offenders);
}

#[test]
fn protobuf_stops_at_the_edge() {
    let offenders = rules::protobuf_inside(&source::rust());
    refuse("types of the contract inside a crate", &offenders);
}

#[test]
fn no_files_of_a_crate_form_a_circle() {
    let offenders = circles::circles(&source::rust());
    refuse("files that use each other in a circle", &offenders);
}

#[test]
fn no_folders_of_a_crate_form_a_circle() {
    let offenders = circles::folder_circles(&source::rust());
    refuse("folders that use each other in a circle", &offenders);
}

#[test]
fn every_crate_takes_the_lints() {
    // `missing_docs` is among them, and `make lint` refuses warnings.
    let offenders = rules::without_lints(&manifests());
    refuse("crates without the workspace's lints", &offenders);
}

#[test]
fn dependencies_point_one_way() {
    let offenders = dependencies::wrong_ways(&manifests());
    refuse("dependencies that point the wrong way", &offenders);
}

#[test]
fn unsafe_code_has_one_home() {
    let offenders = rules::unsafe_code(&source::rust());
    refuse(
        "unsafe outside model/src/cuda and model/src/mapped.rs",
        &offenders,
    );
}

#[test]
fn object_keys_and_subjects_are_spelled_in_one_place() {
    let offenders = rules::spelled_keys(&source::rust());
    refuse(
        "layout builds keys and events names subjects, nothing else does",
        &offenders,
    );
}

#[test]
fn tests_wait_for_conditions() {
    let offenders = rules::unfinished(&source::rust());
    refuse("ignored tests or unfinished code", &offenders);
}

#[test]
fn every_default_configuration_and_recipe_parses() {
    let mut found = Vec::new();
    for folder in ["crates", "services", "recipes"] {
        source::walk(&workspace().join(folder), &mut found);
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
