//! Tells the splits of a source's files by their names, as Hugging Face `datasets` does, and
//! chooses which of them are trained on and which are kept for validation.

use std::collections::BTreeMap;

use togi_tokens::manifest::Split;

use crate::error::{Error, Result};

/// The request's field of the choice.
const FIELD: &str = "records.split";
/// The split without a name of its own: it is trained on by default.
const TRAIN: &str = "train";
const VALIDATION: &str = "validation";
/// The name that leaves the validation split out.
const NONE: &str = "none";
/// Words in a file's or a folder's name, and the split that they stand for.
const WORDS: [(&str, &[&str]); 3] = [
    (TRAIN, &["train", "training"]),
    (VALIDATION, &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits that a request wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The splits to train on, joined by `+`; `train` if not set.
    pub train: Option<String>,
    /// The split whose records become validation rows, or `none`; `validation` if not set, where
    /// the source has it and does not train on it.
    pub validation: Option<String>,
}

/// The splits of a source's files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Splits {
    /// Of each file, in the order of the files. A file of no split is read by no choice.
    pub(crate) of_files: Vec<Vec<String>>,
    /// Splits and their patterns that no file fits.
    pub(crate) unmatched: Vec<(String, String)>,
}

/// What is read of a source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Each file's side; nothing if it is not read.
    pub(crate) sides: Vec<Option<Split>>,
    /// A sentence about it; empty for one file without splits.
    pub(crate) sentence: String,
}

impl Choice {
    /// Chooses among files by their paths within the source, which tell their splits.
    ///
    /// # Errors
    /// As [`Choice::among`].
    pub(crate) fn of(&self, names: &[&str]) -> Result<Chosen> {
        self.among(names, by_names(names).as_ref())
    }

    /// Chooses among files with these splits, or without any.
    ///
    /// # Errors
    /// `InvalidArgument` of `records.split` or `records.validation_split` if a named split is not
    /// there or lacks files, or a file is in both.
    pub(crate) fn among(&self, names: &[&str], splits: Option<&Splits>) -> Result<Chosen> {
        let Some(splits) = splits else {
            return self.without_splits(names.len());
        };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for split in splits.of_files.iter().flatten() {
            *counts.entry(split).or_default() += 1;
        }
        let wanted = self.wanted(&counts)?;
        for (split, pattern) in &splits.unmatched {
            if wanted.side(split).is_some() {
                let text = format!("no file of the source is {pattern:?} of its split {split:?}");
                return Err(Error::invalid(FIELD, text));
            }
        }
        let mut sides = Vec::with_capacity(names.len());
        for (name, splits) in names.iter().zip(&splits.of_files) {
            let found: Vec<_> = splits.iter().filter_map(|s| wanted.side(s)).collect();
            if found.iter().any(|side| side != &found[0]) {
                let text = format!("{name} is in the split to train on and in the one held out");
                return Err(Error::invalid(FIELD, text));
            }
            sides.push(found.first().copied());
        }
        let unnamed = splits.of_files.iter().filter(|splits| splits.is_empty());
        Ok(Chosen {
            sides,
            sentence: sentence(&wanted, &counts, unnamed.count()),
        })
    }

    /// Returns the splits that are read, of those that are there.
    fn wanted<'a>(&'a self, counts: &BTreeMap<&str, usize>) -> Result<Wanted<'a>> {
        let present = |wanted: &str, field: &str| {
            if counts.contains_key(wanted) {
                return Ok(());
            }
            let known: Vec<&str> = counts.keys().copied().collect();
            let text = format!(
                "the source has no split {wanted:?}; its splits are {}",
                known.join(", ")
            );
            Err(Error::invalid(field, text))
        };
        let trained: Vec<&str> = self.train.as_deref().unwrap_or(TRAIN).split('+').collect();
        for wanted in &trained {
            present(wanted, FIELD)?;
        }
        let held_out = match self.validation.as_deref() {
            Some(NONE) => None,
            Some(wanted) => {
                present(wanted, "records.validation_split")?;
                if trained.contains(&wanted) {
                    let text = format!("split {wanted:?} cannot be trained on and held out");
                    return Err(Error::invalid("records.validation_split", text));
                }
                Some(wanted)
            }
            None => Some(VALIDATION)
                .filter(|split| counts.contains_key(split) && !trained.contains(split)),
        };
        Ok(Wanted { trained, held_out })
    }

    fn without_splits(&self, count: usize) -> Result<Chosen> {
        let named = [
            (FIELD, self.train.as_deref().filter(|split| *split != TRAIN)),
            (
                "records.validation_split",
                self.validation.as_deref().filter(|split| *split != NONE),
            ),
        ];
        for (field, split) in named {
            if let Some(split) = split {
                let text = format!("the source has no splits, so that it has no split {split:?}");
                return Err(Error::invalid(field, text));
            }
        }
        Ok(Chosen {
            sides: vec![Some(Split::Train); count],
            sentence: if count > 1 {
                format!("training on {}", files(count))
            } else {
                String::new()
            },
        })
    }
}

/// The splits that are read.
struct Wanted<'a> {
    trained: Vec<&'a str>,
    held_out: Option<&'a str>,
}

impl Wanted<'_> {
    fn side(&self, split: &str) -> Option<Split> {
        if self.trained.contains(&split) {
            return Some(Split::Train);
        }
        (Some(split) == self.held_out).then_some(Split::Validation)
    }
}

/// Says which splits are read and which are not.
fn sentence(wanted: &Wanted<'_>, counts: &BTreeMap<&str, usize>, unnamed: usize) -> String {
    let listed = |side: Option<Split>| {
        let named = counts
            .iter()
            .filter(|(split, _)| wanted.side(split) == side);
        let named = named.map(|(split, count)| format!("{split} ({})", files(*count)));
        named.collect::<Vec<_>>().join(", ")
    };
    let mut sentence = format!("training on {}", listed(Some(Split::Train)));
    if wanted.held_out.is_some() {
        sentence += &format!("; validation rows from {}", listed(Some(Split::Validation)));
    }
    let unnamed = (unnamed > 0).then(|| format!("{} of no split", files(unnamed)));
    let left: Vec<String> = [listed(None)].into_iter().chain(unnamed).collect();
    let left: Vec<String> = left.into_iter().filter(|text| !text.is_empty()).collect();
    if !left.is_empty() {
        sentence += &format!("; not read: {}", left.join(", "));
    }
    sentence
}

/// Returns a number of files in words.
pub(crate) fn files(count: usize) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} file{end}")
}

/// Returns the files' splits, or nothing if no file's name tells one. The first of three rules that
/// fits any file decides for all: `data/SPLIT-00000-of-00001.*`, folders, file names.
pub(crate) fn by_names(names: &[&str]) -> Option<Splits> {
    let rules: [fn(&str) -> Option<String>; 3] = [sharded, by_folder, by_file];
    let found = rules
        .into_iter()
        .map(|rule| {
            let told = names.iter().map(|name| Vec::from_iter(rule(name)));
            told.collect::<Vec<Vec<String>>>()
        })
        .find(|splits| splits.iter().any(|splits| !splits.is_empty()));
    found.map(|of_files| Splits {
        of_files,
        unmatched: Vec::new(),
    })
}

fn sharded(name: &str) -> Option<String> {
    let file = name.strip_prefix("data/")?;
    let digits = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|b| b.is_ascii_digit());
    let (before, count) = file.rsplit_once("-of-")?;
    let (split, shard) = before.rsplit_once('-')?;
    let fits = shard.len() == 5 && digits(shard) && digits(count) && !file.contains('/');
    (fits && !split.is_empty() && count.contains('.')).then(|| split.to_owned())
}

fn by_folder(name: &str) -> Option<String> {
    let (folders, _) = name.rsplit_once('/')?;
    split_of(folders.split('/'), Word::MayEnd)
}

fn by_file(name: &str) -> Option<String> {
    split_of(name.rsplit('/').take(1), Word::GoesOn)
}

/// Whether a word may be the end of a name: a folder's may, a file's is followed by its ending.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    MayEnd,
    GoesOn,
}

fn split_of<'a>(parts: impl Iterator<Item = &'a str> + Clone, word: Word) -> Option<String> {
    let found = WORDS.iter().find(|(_, words)| {
        let mut parts = parts.clone();
        parts.any(|part| words.iter().any(|wanted| has_word(part, wanted, word)))
    });
    found.map(|(split, _)| (*split).to_owned())
}

/// Whether a name has a word between separators. Upper case counts as lower case.
fn has_word(name: &str, wanted: &str, word: Word) -> bool {
    let name = name.to_ascii_lowercase();
    let separates = |c: char| "-._ ".contains(c) || c.is_ascii_digit();
    name.match_indices(wanted).any(|(at, _)| {
        let before = name[..at].chars().next_back();
        let after = name[at + wanted.len()..].chars().next();
        before.is_none_or(separates) && after.map_or(word == Word::MayEnd, separates)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str]) -> Vec<String> {
        let splits = by_names(names).map(|splits| splits.of_files);
        let splits = splits.unwrap_or_else(|| vec![Vec::new(); names.len()]);
        splits.iter().map(|splits| splits.concat()).collect()
    }

    #[test]
    fn names_tell_the_splits_that_datasets_reads() {
        let shards = [
            "data/train-00000-of-00002.parquet",
            "data/test_sft-00000-of-00001-abc.parquet",
            "data/x.jsonl",
        ];
        assert_eq!(told(&shards), ["train", "test_sft", ""]);
        assert_eq!(
            told(&["train/a.jsonl", "eval2/b.jsonl", "test.jsonl"]),
            ["train", "test", ""]
        );
        let files = [
            "data/train.jsonl",
            "my-dev.jsonl",
            "Test_1.json.gz",
            "eval.parquet",
            "all.jsonl",
        ];
        assert_eq!(told(&files), ["train", "validation", "test", "test", ""]);
        // A word inside a longer one does not count.
        for name in ["latest.jsonl", "trains.jsonl", "retrieval.jsonl", "train"] {
            assert_eq!(told(&[name]), [""], "{name}");
        }
    }

    #[test]
    fn the_choice_follows_the_table() {
        const NAMES: [&str; 4] = [
            "data/test.jsonl",
            "data/train.jsonl",
            "data/validation.jsonl",
            "extra.jsonl",
        ];
        let (train, held, not) = (Some(Split::Train), Some(Split::Validation), None);
        let table = [
            (None, None, [not, train, held, not]),
            (None, Some("none"), [not, train, not, not]),
            (None, Some("test"), [held, train, not, not]),
            (Some("test"), None, [train, not, held, not]),
            (Some("train+test"), None, [train, train, held, not]),
            (Some("validation"), None, [not, not, train, not]),
        ];
        for (of_train, of_validation, sides) in table {
            let choice = Choice {
                train: of_train.map(str::to_owned),
                validation: of_validation.map(str::to_owned),
            };
            assert_eq!(choice.of(&NAMES).unwrap().sides, sides, "{choice:?}");
        }
        let sentence = Choice::default().of(&NAMES).unwrap().sentence;
        assert_eq!(
            sentence,
            "training on train (1 file); validation rows from validation (1 file); \
             not read: test (1 file), 1 file of no split"
        );
    }

    #[test]
    fn a_split_that_is_not_there_is_refused_with_those_that_are() {
        let named = |train: &str| Choice {
            train: Some(train.to_owned()),
            validation: None,
        };
        let error = named("trian")
            .of(&["train.jsonl", "test.jsonl"])
            .unwrap_err();
        assert!(error.to_string().ends_with("its splits are test, train"));
        // Nothing is trained on only because it is there.
        let error = Choice::default().of(&["test.jsonl"]).unwrap_err();
        assert!(error.to_string().contains("no split \"train\""));
        assert!(named("test").of(&["a.jsonl", "b.jsonl"]).is_err());
        assert_eq!(
            named("train").of(&["a.jsonl"]).unwrap().sides,
            [Some(Split::Train)]
        );
        let both = Choice {
            train: None,
            validation: Some("train".to_owned()),
        };
        assert!(both.of(&["train.jsonl"]).is_err());
    }
}
