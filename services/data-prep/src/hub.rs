//! Finds the files of a data set on a hub and fetches those of the chosen splits, and no others.

use std::path::PathBuf;

use togi_runtime::store::hub::{Hub, HubRef, Known, Resolved};
use togi_tokens::manifest::Split;
use tokio::fs;
use tokio::io::AsyncReadExt as _;

use crate::dataset_card::{self, CARD};
use crate::error::{Error, Result};
use crate::splits::{Choice, Chosen};

/// The request's field of the data set.
const FIELD: &str = "records.hub";
/// Most bytes of a card that are read; its front matter is at its beginning.
const MAX_CARD_BYTES: u64 = 4 << 20;

/// The files that are read.
pub(crate) struct Fetched {
    /// Name in the repository, path, and side.
    pub(crate) files: Vec<(String, PathBuf, Split)>,
    /// A sentence about what is read and what is not.
    pub(crate) sentence: String,
}

/// Which of a data set's files are wanted.
pub(crate) struct Wanted<'a> {
    /// The files that have records, of all names.
    pub(crate) records: for<'n> fn(Vec<&'n str>) -> Vec<&'n str>,
    /// Most files.
    pub(crate) max_files: usize,
    /// The splits.
    pub(crate) splits: &'a Choice,
}

/// Fetches a data set's files of the chosen splits.
///
/// # Errors
/// With the field: as [`Hub::resolve`] and [`Hub::fetch`]; `InvalidArgument` if a chosen split does
/// not exist or its card cannot be followed.
pub(crate) async fn fetch(reference: &HubRef, wanted: Wanted<'_>) -> Result<Fetched> {
    let named = |error: togi_runtime::Error| error.with_field(FIELD);
    let hub = Hub::from_environment()?;
    // Without a listing, nobody knows whether a folder has all files.
    let resolved = hub.resolve(reference, |_| false).await.map_err(named)?;
    let card = card(&hub, &resolved).await.map_err(named)?;
    let names = (wanted.records)(resolved.names.iter().map(String::as_str).collect());
    if names.is_empty() {
        let text = "the source has no file with records: .json, .jsonl, .parquet, .csv or .tsv";
        return Err(Error::not_found(FIELD, text));
    }
    let splits = dataset_card::splits(&card, &names).map_err(|text| Error::invalid(FIELD, text))?;
    let Chosen { sides, sentence } = match splits {
        Some(splits) => wanted.splits.among(&names, Some(&splits))?,
        None => wanted.splits.of(&names)?,
    };
    let chosen = names.iter().zip(sides);
    let chosen: Vec<(String, Split)> = chosen
        .filter_map(|(name, side)| Some(((*name).to_owned(), side?)))
        .collect();
    if chosen.len() > wanted.max_files {
        let (files, most) = (chosen.len(), wanted.max_files);
        let text = format!("the source has {files} files, more than {most}");
        return Err(Error::invalid(FIELD, text));
    }
    let files: Vec<String> = chosen.iter().map(|(name, _)| name.clone()).collect();
    let snapshot = hub.fetch(&resolved, &files).await.map_err(named)?;
    if resolved.known == Known::InCache {
        let missing = missing_shards(&files);
        if !missing.is_empty() {
            let missing: Vec<&String> = missing.iter().collect();
            let refused = resolved.may_download(&missing, &snapshot.folder);
            refused.map_err(named)?;
        }
    }
    let found = chosen.into_iter().map(|(name, side)| {
        let path = snapshot.folder.join(&name);
        (name, path, side)
    });
    Ok(Fetched {
        files: found.collect(),
        sentence,
    })
}

/// Returns the beginning of the data set's card; empty if it has none.
async fn card(hub: &Hub, resolved: &Resolved) -> togi_runtime::Result<String> {
    let wanted: Vec<String> = resolved
        .names
        .iter()
        .filter(|name| *name == CARD)
        .cloned()
        .collect();
    if wanted.is_empty() {
        return Ok(String::new());
    }
    let snapshot = hub.fetch(resolved, &wanted).await?;
    let mut bytes = Vec::new();
    let file = fs::File::open(snapshot.folder.join(CARD)).await?;
    file.take(MAX_CARD_BYTES).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the files that names such as `train-00000-of-00002.parquet` say there are, and which are
/// not among them.
fn missing_shards(names: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for name in names {
        let Some((before, after)) = name.split_once("-of-") else {
            continue;
        };
        let Some((stem, shard)) = before.rsplit_once('-') else {
            continue;
        };
        let end = after.find(|c: char| !c.is_ascii_digit());
        let (count, ending) = after.split_at(end.unwrap_or(after.len()));
        let width = shard.len();
        let is_number =
            |text: &str| text.len() == width && text.bytes().all(|b| b.is_ascii_digit());
        let Some(count) = count
            .parse::<usize>()
            .ok()
            .filter(|_| is_number(shard) && is_number(count))
        else {
            continue;
        };
        for shard in 0..count {
            let expected = format!("{stem}-{shard:0width$}-of-{count:0width$}{ending}");
            if !names.contains(&expected) && !missing.contains(&expected) {
                missing.push(expected);
            }
            // A name that counts to millions is no shard's.
            if missing.len() > names.len() + 1000 {
                return missing;
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_that_their_names_count_and_that_are_not_there_are_named() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let whole = [
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
        ];
        assert_eq!(missing_shards(&names(&whole)), [""; 0]);
        let first = names(&whole[..1]);
        assert_eq!(missing_shards(&first), [whole[1]]);
        for name in [
            "one-of-2.jsonl",
            "a-of-b.jsonl",
            "x-1-of-10.jsonl",
            "plain.jsonl",
        ] {
            assert_eq!(missing_shards(&names(&[name])), [""; 0], "{name}");
        }
        let far = names(&["a-00000000-of-99999999.json"]);
        assert!(missing_shards(&far).len() < 2000);
    }
}
