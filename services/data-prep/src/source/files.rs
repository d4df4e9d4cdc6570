//! Which files of a folder or of a hub's data set hold records, by their names and their kinds.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use object_store::ObjectMeta;
use togi_common::file;

use crate::error::{Error, Result};

/// Endings of the files with records, if a source is a folder.
const ENDINGS: [&str; 5] = [".json", ".jsonl", ".parquet", ".csv", ".tsv"];
/// Of these the ones that are read only in a source without others: beside JSON or Parquet they
/// describe records more often than they hold them.
const SEPARATED_ENDINGS: [&str; 2] = [".csv", ".tsv"];
const PACKED_ENDINGS: [&str; 3] = [".gz", ".zst", ".zstd"];
/// Files that libraries store beside the records.
const DESCRIPTIONS: [&str; 4] = [
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "dataset_info.json",
];

/// Refuses a folder with a file of records that is no regular file: a store's listing leaves it out
/// without a word.
pub(super) fn all_regular(folder: &Path) -> Result<()> {
    let (mut folders, mut seen) = (vec![folder.to_owned()], HashSet::new());
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten();
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if metadata.is_dir() {
                // A link may lead back to a folder above.
                if !is_hidden(&name) && seen.insert((metadata.dev(), metadata.ino())) {
                    folders.push(path);
                }
                continue;
            }
            if let Err(error) = file::check(&metadata)
                && holds_records(&name)
            {
                let text = format!("{name} {error}");
                return Err(Error::precondition("records.configured", text));
            }
        }
    }
    Ok(())
}

/// Leaves out further names of the same file, as links give them: a mounted ConfigMap has each file
/// three times. The name with the fewest folders stays.
pub(super) fn without_links(folder: &Path, mut metas: Vec<ObjectMeta>) -> Vec<ObjectMeta> {
    metas.sort_by_key(|meta| (meta.location.parts_count(), meta.location.to_string()));
    let mut seen = HashSet::new();
    metas.retain(|meta| {
        // A file that is gone again is named when it is opened.
        let file = std::fs::metadata(folder.join(meta.location.as_ref()));
        file.map_or(true, |file| seen.insert((file.dev(), file.ino())))
    });
    metas
}

/// The lower-case name of a file without the ending of a packed one.
fn plain(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let packed = PACKED_ENDINGS
        .iter()
        .find_map(|ending| name.strip_suffix(ending));
    packed.unwrap_or(&name).to_owned()
}

/// Returns whether a file or a folder is hidden. Programs keep copies there, as Jupyter does in
/// `.ipynb_checkpoints`, and `datasets` leaves them out too. Kubernetes keeps the files of a volume
/// in folders with two points.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') && !name.starts_with("..")
}

/// Returns whether a file is CSV or TSV, by its name.
pub(super) fn is_separated(name: &str) -> bool {
    let plain = plain(name);
    SEPARATED_ENDINGS
        .iter()
        .any(|ending| plain.ends_with(ending))
}

/// Returns whether all files with records are CSV or TSV.
pub(super) fn only_tables<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.all(is_separated)
}

/// Returns whether a file of a folder or of a hub's data set has records, by its name.
pub(super) fn holds_records(name: &str) -> bool {
    let plain = plain(name);
    let file = plain.rsplit('/').next().unwrap_or_default();
    ENDINGS.iter().any(|ending| plain.ends_with(ending))
        && !plain.split('/').any(is_hidden)
        && !DESCRIPTIONS.contains(&file)
}

/// Returns the files with records among these: CSV and TSV only where there are no others.
pub(super) fn with_records(mut names: Vec<&str>) -> Vec<&str> {
    names.retain(|name| holds_records(name));
    let tables = only_tables(names.iter().copied());
    names.retain(|name| tables || !is_separated(name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_recognised_by_their_files_names() {
        for name in [
            "a.json",
            "data/train-00000-of-00001.parquet",
            "x.JSONL.gz",
            "y.json.zst",
            "b.csv",
            "..2026_11_28/records.jsonl",
        ] {
            assert!(holds_records(name), "{name}");
        }
        for name in [
            "README.md",
            ".x.json",
            ".ipynb_checkpoints/a-checkpoint.jsonl",
            "data/.cache/a.json",
            "dataset_infos.json",
            "a.json.txt",
            "data-00000-of-00001.arrow",
            "json",
        ] {
            assert!(!holds_records(name), "{name}");
        }
    }
}
