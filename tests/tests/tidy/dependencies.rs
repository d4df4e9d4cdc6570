//! Which crate may depend on which.

use crate::source::File;

/// A crate, what it may depend on, and what only its tests may.
type Allowed = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const ALLOWED: [Allowed; 12] = [
    ("proto", &[], &[]),
    ("crates/common", &[], &[]),
    ("crates/tokens", &["togi-common"], &[]),
    ("crates/model", &["togi-common"], &[]),
    (
        "crates/runtime",
        &["togi-proto", "togi-common"],
        &["togi-testing"],
    ),
    (
        "crates/testing",
        &["togi-proto", "togi-common", "togi-runtime"],
        &[],
    ),
    (
        "crates/base",
        &["togi-common", "togi-tokens", "togi-model", "togi-runtime"],
        &["togi-testing"],
    ),
    (
        "services/data-prep",
        &["togi-proto", "togi-common", "togi-tokens", "togi-runtime"],
        &["togi-testing"],
    ),
    (
        "services/trainer",
        &[
            "togi-proto",
            "togi-common",
            "togi-tokens",
            "togi-model",
            "togi-runtime",
            "togi-base",
        ],
        // Its tests prepare the data sets that they train on.
        &["togi-testing", "togi-data-prep"],
    ),
    (
        "services/inference",
        &[
            "togi-proto",
            "togi-common",
            "togi-tokens",
            "togi-model",
            "togi-runtime",
            "togi-base",
        ],
        &["togi-testing"],
    ),
    (
        "crates/togi",
        &[
            "togi-proto",
            "togi-common",
            "togi-tokens",
            "togi-model",
            "togi-runtime",
            "togi-base",
            "togi-data-prep",
            "togi-trainer",
            "togi-inference",
        ],
        &["togi-testing"],
    ),
    (
        "tests",
        &[
            "togi-proto",
            "togi-common",
            "togi-tokens",
            "togi-model",
            "togi-runtime",
            "togi-base",
            "togi-data-prep",
            "togi-trainer",
            "togi-inference",
            "togi-testing",
            "togi",
        ],
        &[],
    ),
];

/// What does input and output, so that the pure crates cannot have it.
const IMPURE: [&str; 4] = ["tokio", "tonic", "async-nats", "object_store"];

const PURE: [&str; 3] = ["crates/common", "crates/tokens", "crates/model"];

/// Dependencies that point the wrong way, in the manifests of the workspace's crates.
pub(crate) fn wrong_ways(manifests: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in manifests {
        let folder = file.name.trim_end_matches("/Cargo.toml");
        let Some((_, normal, of_tests)) = ALLOWED.iter().find(|(name, ..)| *name == folder) else {
            offenders.push(format!("{folder} is not in the list of crates"));
            continue;
        };
        let manifest: toml::Table = toml::from_str(&file.text).unwrap();
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let names = manifest.get(section).and_then(toml::Value::as_table);
            for name in names.into_iter().flat_map(toml::Table::keys) {
                let name = name.as_str();
                let tests = section == "dev-dependencies";
                let may = normal.contains(&name) || (tests && of_tests.contains(&name));
                if (name == "togi" || name.starts_with("togi-")) && !may {
                    offenders.push(format!("{folder} must not have {name} in {section}"));
                }
                if !tests && PURE.contains(&folder) && IMPURE.contains(&name) {
                    offenders.push(format!("{folder} is pure: no {name}"));
                }
            }
        }
    }
    offenders
}
