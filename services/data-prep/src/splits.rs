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

/// What is read of a source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Each file's side; nothing if it is not read.
    pub(crate) sides: Vec<Option<Split>>,
    /// A sentence about it; empty for one file without splits.
    pub(crate) sentence: String,
}

impl Choice {
    /// Chooses among files by their paths within the source.
    ///
    /// # Errors
    /// `InvalidArgument` of `records.split` if a named split is not there.
    pub(crate) fn of(&self, names: &[&str]) -> Result<Chosen> {
        let Some(splits) = splits(names) else {
            return self.without_splits(names.len());
        };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for split in splits.iter().flatten() {
            *counts.entry(split).or_default() += 1;
        }
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
        let side = |split: &Option<String>| {
            let split = split.as_deref()?;
            if trained.contains(&split) {
                Some(Split::Train)
            } else {
                (Some(split) == held_out).then_some(Split::Validation)
            }
        };
        let listed = |wanted: &dyn Fn(&str) -> bool| {
            let named = counts.iter().filter(|(split, _)| wanted(split));
            let named = named.map(|(split, count)| format!("{split} ({})", files(*count)));
            named.collect::<Vec<_>>().join(", ")
        };
        let mut sentence = format!("training on {}", listed(&|split| trained.contains(&split)));
        if let Some(split) = held_out {
            sentence += &format!("; validation rows from {}", listed(&|one| one == split));
        }
        let left = listed(&|split| !trained.contains(&split) && Some(split) != held_out);
        let unnamed = splits.iter().filter(|split| split.is_none()).count();
        let unnamed = (unnamed > 0).then(|| format!("{} of no split", files(unnamed)));
        let left: Vec<String> = [left].into_iter().chain(unnamed).collect();
        let left: Vec<String> = left.into_iter().filter(|text| !text.is_empty()).collect();
        if !left.is_empty() {
            sentence += &format!("; not read: {}", left.join(", "));
        }
        Ok(Chosen {
            sides: splits.iter().map(side).collect(),
            sentence,
        })
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

/// Returns a number of files in words.
pub(crate) fn files(count: usize) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} file{end}")
}

/// Returns each file's split, or nothing if no file's name tells one. The first of three rules that
/// fits any file decides for all: `data/SPLIT-00000-of-00001.*`, folders, file names.
fn splits(names: &[&str]) -> Option<Vec<Option<String>>> {
    let rules: [fn(&str) -> Option<String>; 3] = [sharded, by_folder, by_file];
    rules
        .into_iter()
        .map(|rule| names.iter().map(|name| rule(name)).collect::<Vec<_>>())
        .find(|splits| splits.iter().any(Option::is_some))
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
        let splits = splits(names).unwrap_or_else(|| vec![None; names.len()]);
        splits.into_iter().map(Option::unwrap_or_default).collect()
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
