//! Changed copies of files: what each changes, and that its rule sees it.

use crate::source::File;
use crate::{circles, dependencies, imports, map, rules};

/// A rule: the places in these files that break it.
type Rule = fn(&[File]) -> Vec<String>;

/// A rule, a file that is changed or made, what is put before its text, and what must be reported.
pub(crate) struct Change {
    pub(crate) rule: Rule,
    pub(crate) file: &'static str,
    pub(crate) before: &'static str,
    pub(crate) reported: &'static str,
}

const fn change(
    rule: Rule,
    file: &'static str,
    before: &'static str,
    reported: &'static str,
) -> Change {
    Change {
        rule,
        file,
        before,
        reported,
    }
}

/// One or more for each rule.
pub(crate) const ALL: [Change; 21] = [
    change(
        rules::without_purpose,
        "crates/tokens/src/row.rs",
        "use std::fs;\n",
        "row.rs",
    ),
    change(
        rules::long_files,
        "crates/tokens/src/row.rs",
        "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
        "row.rs",
    ),
    change(
        rules::wide_lines,
        "crates/tokens/src/row.rs",
        "// A line that goes on and on, far past the hundred columns that a reader has on a screen beside another file.\n",
        "row.rs:1",
    ),
    change(
        rules::wide_lines,
        "ARCHITECTURE.md",
        "A line that goes on and on, far past the hundred and twenty columns that a reader has, whatever the page that it is on may be about, and then some.\n",
        "ARCHITECTURE.md:1",
    ),
    change(
        rules::banned_phrases,
        "crates/tokens/src/row.rs",
        "// A row, perhaps.\n",
        "row.rs:1",
    ),
    change(
        rules::protobuf_inside,
        "services/trainer/src/error.rs",
        "use togi_proto::trainer::v1::Job;\n",
        "error.rs:1",
    ),
    change(
        map::wrong_paths,
        "ARCHITECTURE.md",
        "`crates/model/src/wheel.rs` turns.\n",
        "names crates/model/src/wheel.rs",
    ),
    change(
        rules::unsafe_code,
        "crates/tokens/src/row.rs",
        "fn wild() { unsafe { } }\n",
        "row.rs",
    ),
    change(
        rules::spelled_keys,
        "services/trainer/src/error.rs",
        "const KEY: &str = \"policies/nightly\";\n",
        "builds an object key",
    ),
    change(
        rules::spelled_keys,
        "services/trainer/src/error.rs",
        "const SUBJECT: &str = \"togi.events.x\";\n",
        "names a subject",
    ),
    change(
        rules::unfinished,
        "crates/tokens/src/row.rs",
        "fn later() { todo!(); }\n",
        "row.rs",
    ),
    change(
        rules::without_lints,
        "crates/tokens/Cargo.toml",
        "[lints]\nworkspace = false\n[rest]\n",
        "crates/tokens",
    ),
    change(
        dependencies::wrong_ways,
        "crates/tokens/Cargo.toml",
        "[build-dependencies]\ntogi-runtime = \"1\"\n",
        "must not have togi-runtime",
    ),
    change(
        dependencies::wrong_ways,
        "services/trainer/Cargo.toml",
        "[dependencies]\ntogi-testing = \"1\"\n",
        "must not have togi-testing in dependencies",
    ),
    change(
        dependencies::wrong_ways,
        "crates/tokens/Cargo.toml",
        "[build-dependencies]\ntokio = \"1\"\n",
        "is pure: no tokio",
    ),
    change(
        imports::nested,
        "crates/tokens/src/row.rs",
        "use std::{fs::{self, File}, io};\n",
        "row.rs:1",
    ),
    // `row` has `prompt`'s types: an import, a path in the code and a re-export close the
    // circle.
    change(
        circles::circles,
        "crates/tokens/src/prompt.rs",
        "use crate::row::Row;\n",
        "prompt.rs:1 -> crates/tokens/src/row.rs",
    ),
    change(
        circles::circles,
        "crates/tokens/src/prompt.rs",
        "fn around() { super::row::Row::new(); }\n",
        "prompt.rs:1 -> crates/tokens/src/row.rs",
    ),
    change(
        circles::circles,
        "crates/tokens/src/prompt.rs",
        "use {std::fs, crate::{row::{self, Row}, record}};\n",
        "prompt.rs:1 -> crates/tokens/src/row.rs",
    ),
    // No two of these files form a circle, but their folders do; the second folder's arrow back is
    // in its module file.
    change(
        circles::folder_circles,
        "services/trainer/src/learn/step.rs",
        "use crate::run::job::Job;\n",
        "learn/step.rs:1 -> services/trainer/src/run/job.rs",
    ),
    change(
        circles::folder_circles,
        "crates/runtime/src/events/cloud.rs",
        "use crate::bus::kv::Entry;\n",
        "crates/runtime/src/bus.rs:",
    ),
];

/// Returns the files with the change made in one of them.
pub(crate) fn apply(change: &Change, files: &[File]) -> Vec<File> {
    let mut copy = files.to_vec();
    let file = copy.iter_mut().find(|file| file.name == change.file);
    let file = file.unwrap_or_else(|| panic!("{} is not there", change.file));
    let manifest = change.file.ends_with("Cargo.toml");
    file.text = match change.before {
        // A table of the same name may not come twice.
        table if manifest => table.to_owned(),
        lines if lines.trim().is_empty() => lines.repeat(30) + &file.text,
        lines => lines.to_owned() + &file.text,
    };
    copy
}
