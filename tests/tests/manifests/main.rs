//! The Kubernetes manifests, rendered and checked against the API's schemas and our own rules.
//! Changed copies prove that each rule sees a violation.

// The configuration's exception for tests sees test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod changes;
mod image;
mod programs;
mod render;
mod rules;

use render::{OVERLAYS, Rendered};
use togi_tests::workspace;

/// Versions of Kubernetes that the manifests are for.
const VERSIONS: [&str; 7] = ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

#[test]
fn every_overlay_is_what_each_version_of_the_api_takes() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(&workspace().join("k8s"), overlay).unwrap();
        for version in VERSIONS {
            rendered.validate(version).unwrap();
        }
    }
}

#[test]
fn every_overlay_keeps_our_rules() {
    for overlay in OVERLAYS {
        let rendered = Rendered::new(&workspace().join("k8s"), overlay).unwrap();
        assert_eq!(rules::broken(&rendered), Vec::<String>::new(), "{overlay}");
    }
}

#[test]
fn each_rule_sees_what_breaks_it() {
    for change in changes::ALL {
        let copy = change.apply();
        let said = match Rendered::new(copy.path(), change.overlay) {
            Err(error) => vec![error],
            Ok(rendered) => {
                let mut said = rules::broken(&rendered);
                said.extend(rendered.validate("1.34").err());
                said
            }
        };
        assert!(
            said.iter().any(|line| line.contains(change.said)),
            "{} in {} was not seen as {:?}: {said:#?}",
            change.to,
            change.file,
            change.said
        );
    }
}
