//! Where a program outside finds the base of an adapter: a hub's repository or a folder. An adapter
//! that leaves the store names it in its configuration and in its card; in the store both have the
//! name under which the base was configured, which is part of the generation.

use std::path::PathBuf;

use serde_json::Value;
use togi_common::canonical;

use crate::error::{Error, Result};
use crate::registry::model_card::{self, OPENING};
use crate::store::folder::local_folder;
use crate::store::hub::{HubRef, RepoKind};

const NAME: &str = "base_model_name_or_path";
const REVISION: &str = "revision";

/// A place from which transformers loads a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePlace {
    /// A repository, `OWNER/NAME`, or a folder's whole path.
    pub name: String,
    /// A repository's branch, tag or commit.
    pub revision: Option<String>,
}

impl BasePlace {
    /// Returns the place of a base's files that are from a hub or a folder; `None` for a store,
    /// from which transformers cannot read.
    #[must_use]
    pub fn of_origin(origin: &str) -> Option<Self> {
        if let Ok(reference) = HubRef::parse("origin", origin) {
            return Self::of_reference(&reference);
        }
        let folder = local_folder(origin).ok()??;
        // A folder's URL may end in a slash.
        let folder: PathBuf = folder.components().collect();
        Some(Self {
            name: folder.to_str()?.to_owned(),
            revision: None,
        })
    }

    /// Returns the place of a model's repository; `None` for a data set's.
    #[must_use]
    pub fn of_reference(reference: &HubRef) -> Option<Self> {
        let HubRef { owner, name, .. } = reference;
        (reference.kind == RepoKind::Model).then(|| Self {
            name: format!("{owner}/{name}"),
            revision: reference.revision.clone(),
        })
    }

    /// Returns the place that an adapter's configuration names.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not JSON, or names none.
    pub fn of_config(config: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(config)?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let name = text(NAME).ok_or_else(|| Error::invalid(NAME, format!("{NAME} is no text")))?;
        Ok(Self {
            name,
            revision: text(REVISION),
        })
    }

    /// Returns the URL of a place in a folder of this machine.
    ///
    /// # Errors
    /// `InvalidArgument` if the name is no whole path.
    pub fn folder_url(&self) -> Result<String> {
        let url = url::Url::from_directory_path(&self.name);
        let url = url.map_err(|()| Error::invalid(NAME, format!("{} is no path", self.name)))?;
        Ok(url.to_string())
    }

    /// Whether the name has the form of a hub's repository.
    #[must_use]
    pub fn is_repository(&self) -> bool {
        HubRef::parse(NAME, &format!("hf://{}", self.name))
            .is_ok_and(|reference| Self::of_reference(&reference).is_some())
    }

    /// Returns an adapter's configuration that names this place.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no JSON object.
    pub fn in_config(&self, config: &[u8]) -> Result<Vec<u8>> {
        let mut value: Value = serde_json::from_slice(config)?;
        let map = value
            .as_object_mut()
            .ok_or_else(|| Error::invalid(NAME, "adapter_config.json is not an object"))?;
        map.insert(NAME.to_owned(), self.name.clone().into());
        map.insert(REVISION.to_owned(), self.revision.clone().into());
        Ok(format!("{:#}\n", canonical::value(&value)?).into_bytes())
    }

    /// Returns an adapter's card that names this place instead of the base `old`, and opens the
    /// adapter at `adapter`, a folder or a repository. Other lines stay.
    #[must_use]
    pub fn in_card(&self, card: &str, old: &str, adapter: &str) -> String {
        let new = &self.name;
        let card = card.replace(&model_card::snippet(old), &model_card::opening(adapter));
        let renamed = card.lines().map(|line| {
            if line == model_card::base_line(old) {
                model_card::base_line(new)
            } else if line == model_card::tag_line(old) {
                model_card::tag_line(new)
            } else if line == model_card::title_line(old) {
                model_card::title_line(new)
            } else if line.starts_with(OPENING) {
                format!("{OPENING}{adapter:?})")
            } else {
                line.to_owned()
            }
        });
        renamed.map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, revision: Option<&str>) -> BasePlace {
        BasePlace {
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        }
    }

    #[test]
    fn a_base_is_where_its_files_are_from() {
        let table = [
            ("hf://o/n@abc", Some(place("o/n", Some("abc")))),
            ("hf://o/n", Some(place("o/n", None))),
            ("file:///models/mine", Some(place("/models/mine", None))),
            ("file:///models/mine/", Some(place("/models/mine", None))),
            ("file:///%E7%A0%94", Some(place("/研", None))),
            ("hf://datasets/o/n", None),
            ("s3://bucket/base", None),
            ("", None),
        ];
        for (origin, expected) in table {
            assert_eq!(BasePlace::of_origin(origin), expected, "{origin}");
        }
        for (name, is) in [
            ("o/n", true),
            ("demo", false),
            ("/o/n", false),
            ("a/b/c", false),
        ] {
            assert_eq!(place(name, None).is_repository(), is, "{name}");
        }
    }

    #[test]
    fn a_configuration_changes_in_the_place_alone() {
        let config =
            br#"{"r": 8, "base_model_name_or_path": "demo", "lora_alpha": 0.5, "revision": null}"#;
        let place = place("o/n", Some("abc"));
        let written = place.in_config(config).unwrap();
        let text = String::from_utf8(written.clone()).unwrap();
        let expected = "{\n  \"base_model_name_or_path\": \"o/n\",\n  \"lora_alpha\": 0.5,\n  \
                        \"r\": 8,\n  \"revision\": \"abc\"\n}\n";
        assert_eq!(text, expected);
        assert_eq!(BasePlace::of_config(&written).unwrap(), place);
        assert!(place.in_config(b"[]").is_err() && BasePlace::of_config(b"{}").is_err());
    }
}
