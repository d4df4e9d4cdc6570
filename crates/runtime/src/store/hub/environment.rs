//! What the environment says about a hub, with huggingface_hub's meaning: a variable that is set
//! for its programs is understood in the same way here.

use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// The longest silence of a hub, unless `HF_HUB_DOWNLOAD_TIMEOUT` names another.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest wait for a commit's file names, unless `HF_HUB_ETAG_TIMEOUT` names another.
const LISTING_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the hub may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Requests are allowed.
    Online,
    /// Only the cache is read: `HF_HUB_OFFLINE`.
    Offline,
}

/// A hub, its cache on this machine, and how to ask it.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or the folder `hub` of `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or the content of the file that `hf auth login` writes.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`, or `TRANSFORMERS_OFFLINE`.
    pub access: Access,
    /// How long a hub may be silent: `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
    pub patience: Duration,
    /// How long a hub may take to name a commit's files, all attempts together:
    /// `HF_HUB_ETAG_TIMEOUT`, in seconds.
    pub listing_patience: Duration,
}

impl Environment {
    /// Returns a hub at an endpoint, with its own cache folder and without a token.
    #[must_use]
    pub fn at(endpoint: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.into(),
            cache: cache.into(),
            token: None,
            access: Access::Online,
            patience: PATIENCE,
            listing_patience: LISTING_PATIENCE,
        }
    }

    /// Reads the process's environment, and the token's file.
    #[must_use]
    pub fn of_process() -> Self {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads an environment. A variable that is empty counts as not set.
    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_on = |name: &str| set(name).is_some_and(|value| is_true(&value));
        let folder = |name: &str| set(name).map(|value| expanded(&value, variable));
        let user_cache = folder("XDG_CACHE_HOME")
            .unwrap_or_else(|| expanded("~/.cache", variable))
            .join("huggingface");
        let home = folder("HF_HOME").unwrap_or(user_cache);
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let offline = set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE"));
        let named = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let token = named.as_deref().and_then(clean).or_else(|| {
            let file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            clean(&std::fs::read_to_string(file).ok()?)
        });
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let seconds = |name: &str, default: Duration| {
            let named = set(name).and_then(|value| value.parse().ok());
            let named = named.filter(|seconds| *seconds > 0);
            named.map_or(default, Duration::from_secs)
        };
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: token.filter(|_| !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            access: match offline {
                Some(value) if is_true(&value) => Access::Offline,
                _ => Access::Online,
            },
            patience: seconds("HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE),
            listing_patience: seconds("HF_HUB_ETAG_TIMEOUT", LISTING_PATIENCE),
        }
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("access", &self.access)
            .field("patience", &self.patience)
            .field("listing_patience", &self.listing_patience)
            .finish()
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

fn clean(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "");
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

/// Replaces a leading `~`, then `$NAME` and `${NAME}` of variables that are set.
fn expanded(path: &str, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let home = || variable("HOME").unwrap_or_else(|| "/tmp".to_owned());
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => home() + rest,
        _ => path.to_owned(),
    };
    let mut done = String::new();
    let mut rest = path.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        done.push_str(before);
        let braced = after.strip_prefix('{').and_then(|a| a.split_once('}'));
        let (name, left) = braced.unwrap_or_else(|| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = after.find(|c| !is_part(c)).unwrap_or(after.len());
            after.split_at(end)
        });
        match variable(name) {
            Some(value) => {
                done.push_str(&value);
                rest = left;
            }
            None => {
                done.push('$');
                rest = after;
            }
        }
    }
    done.push_str(rest);
    Path::new(&done).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        Environment::read(&|name| {
            let mut all = [("HOME", "/home/me")].iter().chain(variables);
            let found = all.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        type Variables = &'static [(&'static str, &'static str)];
        let table: [(Variables, &str); 9] = [
            (&[], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "~/models")], "/home/me/models/hub"),
            (
                &[("HF_HOME", "$HOME/${S}/m"), ("S", "s")],
                "/home/me/s/m/hub",
            ),
            (&[("HF_HOME", "/a/$NOT_SET/b")], "/a/$NOT_SET/b/hub"),
            (
                &[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/old",
            ),
            (
                &[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/new",
            ),
            (&[("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
        ];
        for (variables, cache) in table {
            assert_eq!(read(variables).cache, Path::new(cache), "{variables:?}");
        }
        assert_eq!(read(&[]).endpoint, DEFAULT_ENDPOINT);
        let mirror = read(&[("HF_ENDPOINT", "http://mirror:9001/")]);
        assert_eq!(mirror.endpoint, "http://mirror:9001");
    }

    #[test]
    fn offline_is_what_either_variable_says() {
        let table = [
            (None, None, Access::Online),
            (Some("1"), None, Access::Offline),
            (Some("true"), None, Access::Offline),
            (Some("ON"), None, Access::Offline),
            (Some("0"), None, Access::Online),
            (Some("2"), None, Access::Online),
            (None, Some("yes"), Access::Offline),
            // The hub's own variable decides, unless it is empty.
            (Some("0"), Some("1"), Access::Online),
            (Some(""), Some("1"), Access::Offline),
        ];
        for (hub, transformers, access) in table {
            let named = [
                ("HF_HUB_OFFLINE", hub),
                ("TRANSFORMERS_OFFLINE", transformers),
            ];
            let set: Vec<_> = named
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            assert_eq!(read(&set).access, access, "{set:?}");
        }
        let slow = read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "7")]);
        assert_eq!(slow.patience, Duration::from_secs(7));
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "0")]).patience, PATIENCE);
    }

    #[test]
    fn a_token_is_the_variables_or_else_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), " of_the_file\n").unwrap();
        std::fs::write(folder.path().join("other"), "of_another").unwrap();
        let other = format!("{home}/other");
        let absent = format!("{home}/absent");
        let token = |more: &[(&str, &str)]| read(&[&[("HF_HOME", home)], more].concat()).token;
        assert_eq!(token(&[]).as_deref(), Some("of_the_file"));
        assert_eq!(token(&[("HF_TOKEN", "own\r\n")]).as_deref(), Some("own"));
        let legacy = [("HUGGING_FACE_HUB_TOKEN", "old")];
        assert_eq!(token(&legacy).as_deref(), Some("old"));
        let named = [("HF_TOKEN_PATH", other.as_str())];
        assert_eq!(token(&named).as_deref(), Some("of_another"));
        assert_eq!(token(&[("HF_TOKEN_PATH", &absent)]), None);
        let disabled = [("HF_TOKEN", "own"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(token(&disabled), None);
        let shown = format!("{:?}", read(&[("HF_TOKEN", "secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
