//! Rules over the text of files: each takes files and returns the places that break it.

use crate::source::{self, File};

/// The most lines of a file, without its unit tests. The style page asks for fewer.
const MOST_LINES: usize = 500;

/// The most columns of a line.
const MOST_COLUMNS: usize = 100;

/// The most columns of a line of prose, outside tables and code.
const MOST_COLUMNS_OF_PROSE: usize = 120;

/// Turns of phrase that stop a reader, whatever the sentence.
const BANNED: [&str; 12] = [
    "is none",
    "so many",
    "whoever",
    "perhaps",
    "if there is one",
    "for good",
    "gone over",
    "at the most",
    "its maker",
    "lends from",
    "turned round",
    "everybody's",
];

/// Where protobuf's types may appear. The command is a client and may use them everywhere.
const EDGE: [&str; 13] = [
    "proto/",
    "crates/togi/",
    "crates/runtime/src/rpc",
    "crates/runtime/src/bus",
    "crates/runtime/src/events",
    "crates/runtime/src/jobs/record.rs",
    "crates/runtime/src/error/convert.rs",
    "services/data-prep/src/rpc",
    "services/trainer/src/api",
    "services/inference/src/rpc",
    "services/inference/benches/serving/deployment.rs",
    "services/gateway/src/rpc",
    "crates/testing/",
];

const KEYS: [&str; 7] = [
    "\"uploads/",
    "\"datasets/",
    "\"names/",
    "\"jobs/",
    "\"adapters/",
    "\"aliases/",
    "\"policies/",
];

const SUBJECTS: [&str; 4] = [
    "\"togi.events",
    "\"togi.jobs",
    "\"togi.progress",
    "\"togi.dead",
];

pub(crate) fn without_purpose(files: &[File]) -> Vec<String> {
    let silent = |file: &&File| !file.text.trim_start().starts_with("//!");
    files
        .iter()
        .filter(silent)
        .map(|file| file.name.clone())
        .collect()
}

pub(crate) fn long_files(files: &[File]) -> Vec<String> {
    let lines = |file: &File| file.code().lines().count();
    let long = files.iter().filter(|file| lines(file) > MOST_LINES);
    long.map(|file| format!("{} {}", lines(file), file.name))
        .collect()
}

/// Lines that are too wide: of Rust, protobuf and TOML all but those with a text, which no line
/// break can shorten; of CUDA, which has no formatter here, the comments; of prose all but tables
/// and code.
pub(crate) fn wide_lines(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in files {
        let prose = file.name.ends_with(".md");
        // A line of Japanese cannot be broken without a blank in the page.
        if file.name.ends_with(".ja.md") {
            continue;
        }
        if !prose && !file.ends_with(&[".rs", ".cu", ".cuh", ".proto", ".toml"]) {
            continue;
        }
        let rust = file.name.ends_with(".rs");
        let cuda = file.ends_with(&[".cu", ".cuh"]);
        let bare = source::bare(&file.text);
        let mut bare = bare.lines();
        let mut in_code = false;
        for (number, text) in file.text.lines().enumerate() {
            let bare = bare.next().unwrap_or_default();
            let trimmed = text.trim_start();
            let slashes = trimmed.starts_with("//");
            let comment = slashes || (trimmed.starts_with('#') && !rust && !cuda);
            let content = trimmed.trim_start_matches(['/', '!', ' ']);
            in_code ^= content.starts_with("```");
            let most = if prose {
                MOST_COLUMNS_OF_PROSE
            } else {
                MOST_COLUMNS
            };
            let free = if prose {
                in_code || trimmed.starts_with('|') || text.starts_with("    ")
            } else if comment {
                in_code || text.contains("://")
            } else {
                text.contains('"') || cuda || (rust && bare.trim().is_empty())
            };
            let columns = text.chars().count();
            if columns > most && !free {
                offenders.push(format!(
                    "{}:{} has {columns} columns",
                    file.name,
                    number + 1
                ));
            }
        }
    }
    offenders
}

/// Banned turns of phrase in comments and prose.
pub(crate) fn banned_phrases(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in files {
        let prose = file.name.ends_with(".md");
        let marks: &[&str] = if file.ends_with(&[".rs", ".cu", ".cuh", ".proto"]) {
            &["//"]
        } else if file.ends_with(&[".toml", ".py"]) {
            &["# "]
        } else {
            &[]
        };
        for (number, text) in file.text.lines().enumerate() {
            let start = match marks.iter().find_map(|mark| text.find(mark)) {
                Some(start) => start,
                None if prose => 0,
                None => continue,
            };
            let text = text.to_lowercase();
            for phrase in BANNED
                .iter()
                .filter(|phrase| has_phrase(&text, start, phrase))
            {
                offenders.push(format!("{}:{} says {phrase:?}", file.name, number + 1));
            }
        }
    }
    offenders
}

/// Returns whether a line has a phrase in whole words at or after `start`, outside quotes.
fn has_phrase(line: &str, start: usize, phrase: &str) -> bool {
    line.match_indices(phrase).any(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
        let quoted = before.matches('"').count() % 2 == 1;
        let word = edge(before.chars().next_back()) && edge(rest[phrase.len()..].chars().next());
        at >= start && word && !quoted
    })
}

/// Protobuf's types inside the services and libraries, behind their edge.
pub(crate) fn protobuf_inside(files: &[File]) -> Vec<String> {
    let inside =
        |file: &&File| !file.is_test() && !EDGE.iter().any(|edge| file.name.starts_with(edge));
    let mut offenders = Vec::new();
    for file in files.iter().filter(inside) {
        let bare = source::without_tests(&source::bare(&file.text));
        let found = ["togi_proto", "proto::"]
            .iter()
            .find_map(|name| bare.find(name));
        if let Some(at) = found {
            offenders.push(format!("{}:{}", file.name, source::line(&bare, at)));
        }
    }
    offenders
}

pub(crate) fn unsafe_code(files: &[File]) -> Vec<String> {
    let elsewhere = |file: &&File| {
        !file.name.starts_with("crates/model/src/cuda/")
            && file.name != "crates/model/src/mapped.rs"
            && !file.is_test()
    };
    let found = files
        .iter()
        .filter(elsewhere)
        .filter(|file| file.text.contains("unsafe {") || file.text.contains("unsafe fn"));
    found.map(|file| file.name.clone()).collect()
}

pub(crate) fn spelled_keys(files: &[File]) -> Vec<String> {
    let mut offenders = Vec::new();
    let ours = |file: &&File| !file.is_test() && !file.name.starts_with("proto/");
    for file in files.iter().filter(ours) {
        let code = file.code();
        let name = file.name.as_str();
        if !name.starts_with("crates/runtime/src/layout") && KEYS.iter().any(|k| code.contains(k)) {
            offenders.push(format!("{name}: builds an object key"));
        }
        if !name.starts_with("crates/runtime/src/events")
            && SUBJECTS.iter().any(|s| code.contains(s))
        {
            offenders.push(format!("{name}: names a subject"));
        }
    }
    offenders
}

pub(crate) fn unfinished(files: &[File]) -> Vec<String> {
    let unfinished = |file: &&File| {
        let bare = source::bare(&file.text);
        bare.contains("#[ignore") || bare.contains("todo!(")
    };
    files
        .iter()
        .filter(unfinished)
        .map(|file| file.name.clone())
        .collect()
}

/// Manifests of crates that do not take the workspace's lints, among them that of `missing_docs`.
pub(crate) fn without_lints(manifests: &[File]) -> Vec<String> {
    let without = |file: &&File| {
        let table: toml::Table = toml::from_str(&file.text).unwrap();
        let lints = table.get("lints").and_then(|lints| lints.get("workspace"));
        lints.and_then(toml::Value::as_bool) != Some(true)
    };
    manifests
        .iter()
        .filter(without)
        .map(|file| file.name.clone())
        .collect()
}
