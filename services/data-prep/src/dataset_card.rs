//! The front matter of a hub's data set: which files are of which split, as the `configs` of its
//! README.md say. Hugging Face `datasets` reads the files by it, and not by their names.

use globset::{Glob, GlobBuilder};
use serde::Deserialize;
use serde_json::Value;

use crate::splits::{Splits, by_names};

/// The name of the card.
pub(crate) const CARD: &str = "README.md";
/// The split of files that no split is named for.
const TRAIN: &str = "train";
/// The name of the configuration that is read if none is marked.
const DEFAULT: &str = "default";

/// The fields that decide about files.
#[derive(Debug, Default, Deserialize)]
struct Front {
    #[serde(default)]
    configs: Vec<Config>,
}

/// A configuration of the data set; `datasets` calls it a subset too.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "unnamed")]
    config_name: String,
    data_files: Option<Value>,
    data_dir: Option<String>,
    #[serde(default)]
    default: bool,
}

fn unnamed() -> String {
    DEFAULT.to_owned()
}

/// A split's name and the pattern of its files.
type Pattern = (String, String);

/// Returns the splits of a repository's files as its card has them; `None` if the names alone tell
/// them.
///
/// # Errors
/// A sentence about the card, if it cannot be followed.
pub(crate) fn splits(card: &str, names: &[&str]) -> Result<Option<Splits>, String> {
    let Some(front) = front_matter(card) else {
        return Ok(None);
    };
    let front: Option<Front> = serde_saphyr::from_str(&front)
        .map_err(|error| format!("the front matter of its {CARD} is not readable: {error}"))?;
    let front = front.unwrap_or_default();
    let Some(config) = chosen(&front.configs)? else {
        return Ok(None);
    };
    let folder = config.data_dir.as_deref().map(within).unwrap_or_default();
    let Some(files) = &config.data_files else {
        return Ok(of_folder(&folder, names));
    };
    let mut found = Splits {
        of_files: vec![Vec::new(); names.len()],
        unmatched: Vec::new(),
    };
    for (split, pattern) in patterns(files, &config.config_name)? {
        let whole = format!("{folder}{}", within_file(&pattern));
        let glob = glob(&whole)?.compile_matcher();
        let mut fits = false;
        for (name, splits) in names.iter().zip(&mut found.of_files) {
            if !glob.is_match(name) {
                continue;
            }
            fits = true;
            if !splits.contains(&split) {
                splits.push(split.clone());
            }
        }
        if !fits {
            found.unmatched.push((split, pattern));
        }
    }
    Ok(Some(found))
}

/// Returns the text between the first two lines of three hyphens.
fn front_matter(card: &str) -> Option<String> {
    let mut lines = card.lines().skip_while(|line| line.trim().is_empty());
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let mut front = String::new();
    for line in lines {
        if line.trim_end() == "---" {
            return Some(front);
        }
        front += line;
        front.push('\n');
    }
    None
}

/// Returns the configuration that is read: the marked one, the one named `default`, or the only
/// one.
fn chosen(configs: &[Config]) -> Result<Option<&Config>, String> {
    let marked = configs.iter().find(|config| config.default);
    let named = configs.iter().find(|config| config.config_name == DEFAULT);
    if let Some(config) = marked.or(named) {
        return Ok(Some(config));
    }
    match configs {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => {
            let names: Vec<&str> = several.iter().map(|c| c.config_name.as_str()).collect();
            Err(format!(
                "its {CARD} has the configurations {}, and none of them is the default; download \
                 the files of one, and prepare those",
                names.join(", ")
            ))
        }
    }
}

/// Reads `data_files`: a pattern, a list of patterns, or a list of splits with their patterns.
fn patterns(files: &Value, config: &str) -> Result<Vec<Pattern>, String> {
    let wrong = || {
        format!(
            "data_files of {config:?} in its {CARD} must be a path, a list of paths, or a list of \
             split and path"
        )
    };
    let texts = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => {
                let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
                texts.collect()
            }
            _ => None,
        }
    };
    if let Some(texts) = texts(files) {
        let of_train = texts.into_iter().map(|text| (TRAIN.to_owned(), text));
        return Ok(of_train.collect());
    }
    let mut patterns = Vec::new();
    for entry in files.as_array().ok_or_else(wrong)? {
        let split = entry["split"].as_str().ok_or_else(wrong)?;
        for text in texts(&entry["path"]).ok_or_else(wrong)? {
            patterns.push((split.to_owned(), text));
        }
    }
    Ok(patterns)
}

/// Without `data_files`, the names in the folder tell the splits.
fn of_folder(folder: &str, names: &[&str]) -> Option<Splits> {
    if folder.is_empty() {
        return None;
    }
    let inside: Vec<Option<&str>> = names.iter().map(|name| name.strip_prefix(folder)).collect();
    let known: Vec<&str> = inside.iter().flatten().copied().collect();
    let told = by_names(&known).map(|splits| splits.of_files);
    let told = told.unwrap_or_else(|| vec![vec![TRAIN.to_owned()]; known.len()]);
    let mut told = told.into_iter();
    let of_files = inside.iter().map(|name| match name {
        Some(_) => told.next().unwrap_or_default(),
        None => Vec::new(),
    });
    Some(Splits {
        of_files: of_files.collect(),
        unmatched: Vec::new(),
    })
}

fn within_file(path: &str) -> &str {
    path.trim_start_matches("./").trim_start_matches('/')
}

/// A folder as the beginning of its files' names.
fn within(folder: &str) -> String {
    let folder = within_file(folder).trim_end_matches('/');
    if folder.is_empty() || folder == "." {
        return String::new();
    }
    format!("{folder}/")
}

fn glob(pattern: &str) -> Result<Glob, String> {
    if pattern.contains("://") {
        return Err(format!(
            "its {CARD} names {pattern:?}, which is outside of the repository"
        ));
    }
    // Only `*`, `?`, `**` and sets are patterns there.
    let plain = pattern.replace('{', "[{]").replace('}', "[}]");
    GlobBuilder::new(&plain)
        .literal_separator(true)
        .build()
        .map_err(|error| format!("its {CARD} names {pattern:?}, which is no pattern: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = [
        "a/x.jsonl",
        "a/y.jsonl",
        "a/deep/z.jsonl",
        "test.jsonl",
        "train.jsonl",
    ];

    fn card(configs: &str) -> String {
        format!("---\nlicense: mit\ntags: [a, b]\n{configs}---\n# A data set\n")
    }

    /// Each file's splits, joined.
    fn told(configs: &str) -> Option<Vec<String>> {
        let splits = splits(&card(configs), &NAMES).unwrap()?;
        Some(
            splits
                .of_files
                .iter()
                .map(|splits| splits.join("+"))
                .collect(),
        )
    }

    #[test]
    fn data_files_tell_the_splits_whatever_the_names_say() {
        let table: [(&str, [&str; 5]); 9] = [
            (
                "configs:\n- config_name: default\n  data_files: a/*.jsonl\n",
                ["train", "train", "", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files: 'a/**/*.jsonl'\n",
                ["train", "train", "train", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files: [a/x.jsonl, ./test.jsonl]\n",
                ["train", "", "", "train", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: test.jsonl\n  - split: held\n    path: [a/x.jsonl, 'a/[y-z].jsonl']\n",
                ["held", "held", "", "train", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_dir: a\n  data_files: '*.jsonl'\n",
                ["train", "train", "", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_dir: ./a/\n",
                ["train", "train", "train", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files: a/x.jsonl\n- config_name: y\n  default: true\n  data_files: a/y.jsonl\n",
                ["", "train", "", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files: a/x.jsonl\n- config_name: default\n  data_files: a/y.jsonl\n",
                ["", "train", "", "", ""],
            ),
            (
                "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: '*.jsonl'}\n  - {split: test, path: test.jsonl}\n",
                ["", "", "", "train+test", "train"],
            ),
        ];
        for (configs, expected) in table {
            assert_eq!(told(configs).unwrap(), expected, "{configs}");
        }
    }

    #[test]
    fn a_card_without_files_leaves_them_to_their_names() {
        for text in [
            "",
            "# A data set\n",
            "---\nlicense: mit\n---\n",
            "---\n---\n",
            "---\nconfigs: []\n---\n",
            "---\nno end\n",
            "---\r\nconfigs:\r\n- config_name: default\r\n---\r\n",
        ] {
            assert_eq!(splits(text, &NAMES), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn a_card_that_cannot_be_followed_says_why() {
        let table = [
            ("configs: [\n", "not readable"),
            (
                "configs:\n- config_name: x\n  data_files: {a: 1}\n",
                "data_files of \"x\"",
            ),
            (
                "configs:\n- config_name: x\n  data_files:\n  - split: a\n",
                "data_files of \"x\"",
            ),
            (
                "configs:\n- config_name: x\n  data_files: https://a/b.jsonl\n",
                "outside of the repository",
            ),
            (
                "configs:\n- config_name: x\n- config_name: y\n",
                "configurations x, y",
            ),
        ];
        for (configs, says) in table {
            let error = splits(&card(configs), &NAMES).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
        let none = splits(
            &card("configs:\n- config_name: x\n  data_files: b/*\n"),
            &NAMES,
        );
        let unmatched = none.unwrap().unwrap().unmatched;
        assert_eq!(unmatched, [("train".to_owned(), "b/*".to_owned())]);
    }
}
