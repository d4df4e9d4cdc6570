//! References to repositories of a hub.

use std::fmt;

use crate::error::{Error, Result};

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// `hf://OWNER/NAME`
    Model,
    /// `hf://datasets/OWNER/NAME`
    Dataset,
}

/// A reference to a repository: `hf://[datasets/]OWNER/NAME[@REVISION]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// Its kind.
    pub kind: RepoKind,
    /// Its owner.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Branch, tag or commit; the main branch if absent.
    pub revision: Option<String>,
}

impl HubRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// `InvalidArgument` of that field.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let wrong = || {
            let message = format!(
                "{field} must be hf://datasets/OWNER/NAME[@REVISION] or hf://OWNER/NAME[@REVISION]"
            );
            Error::invalid(field, message)
        };
        let rest = text.strip_prefix("hf://").ok_or_else(wrong)?;
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (rest, None),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (kind, owner, name) = match parts.as_slice() {
            ["datasets", owner, name] => (RepoKind::Dataset, *owner, *name),
            [owner, name] if *owner != "datasets" => (RepoKind::Model, *owner, *name),
            _ => return Err(wrong()),
        };
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with(['.', '-'])
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let revision_is_plain = revision.is_none_or(|revision| revision.split('/').all(plain));
        if !plain(owner) || !plain(name) || !revision_is_plain {
            return Err(wrong());
        }
        let revision = revision.map(str::to_owned);
        Ok(Self {
            kind,
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision,
        })
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.kind {
            RepoKind::Dataset => "hf://datasets/",
            RepoKind::Model => "hf://",
        };
        write!(f, "{prefix}{}/{}", self.owner, self.name)?;
        self.revision
            .as_ref()
            .map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_follow_the_table() {
        let good = [
            (
                "hf://datasets/kunishou/databricks-dolly-15k-ja",
                RepoKind::Dataset,
                None,
            ),
            (
                "hf://rinna/japanese-gpt-neox-3.6b@main",
                RepoKind::Model,
                Some("main"),
            ),
            ("hf://o/n@refs/pr/1", RepoKind::Model, Some("refs/pr/1")),
        ];
        for (text, kind, revision) in good {
            let reference = HubRef::parse("hub", text).unwrap();
            assert_eq!(
                (reference.kind, reference.revision.as_deref()),
                (kind, revision)
            );
            assert_eq!(reference.to_string(), text);
        }
        let bad = [
            "",
            "hf://",
            "hf://x",
            "https://x/y",
            "hf://datasets/x",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/..",
            "hf://a/b@",
            "hf://a/b@../../c",
            "hf://a/b@x y",
            "hf://a/b?c",
        ];
        for text in bad {
            assert_eq!(
                HubRef::parse("hub", text).unwrap_err().field(),
                Some("hub"),
                "{text}"
            );
        }
    }
}
