//! A hub for tests: it speaks the paths of the Hugging Face hub that reading, creating and
//! committing take, over repositories in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The commit of every repository before it is written to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// Its files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whether only its owner may read it.
    pub private: bool,
    /// The messages of its commits.
    pub messages: Vec<String>,
}

#[derive(Debug, Default)]
struct Contents {
    /// By `models/OWNER/NAME` or `datasets/OWNER/NAME`.
    repositories: BTreeMap<String, Repository>,
    requests: Vec<String>,
    token: Option<String>,
    refuses_downloads: bool,
}

/// A running hub, which is stopped when it is dropped.
#[derive(Debug)]
pub struct LocalHub {
    /// Its address, for `HF_ENDPOINT`.
    pub endpoint: String,
    contents: Arc<Mutex<Contents>>,
    serving: JoinHandle<()>,
}

impl Drop for LocalHub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl LocalHub {
    /// Starts a hub without repositories.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start() -> Self {
        let contents = Arc::<Mutex<Contents>>::default();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&contents));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let serving = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, router).await;
        });
        Self {
            endpoint,
            contents,
            serving,
        }
    }

    /// Puts a file into a repository, `models/OWNER/NAME` or `datasets/OWNER/NAME`.
    pub fn put(&self, repository: &str, name: &str, bytes: impl Into<Vec<u8>>) {
        let mut contents = self.contents.lock();
        let entry = contents.repositories.entry(repository.to_owned());
        let files = &mut entry.or_default().files;
        files.insert(name.to_owned(), bytes.into());
        contents.refuses_downloads = false;
    }

    /// Returns a repository as it is now.
    #[must_use]
    pub fn repository(&self, repository: &str) -> Option<Repository> {
        self.contents.lock().repositories.get(repository).cloned()
    }

    /// Lets only this token read and write from now on.
    pub fn require_token(&self, token: &str) {
        self.contents.lock().token = Some(token.to_owned());
    }

    /// Refuses every download until the next file is put, as a storage behind a hub does whose link
    /// has expired: a file's size is still told.
    pub fn refuse_downloads(&self) {
        self.contents.lock().refuses_downloads = true;
    }

    /// Returns the requests since the last call, as `METHOD /path`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.contents.lock().requests)
    }
}

async fn answer(
    State(contents): State<Arc<Mutex<Contents>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut contents = contents.lock();
    contents.requests.push(format!("{method} {}", uri.path()));
    if let Some(token) = &contents.token {
        let given = headers.get(header::AUTHORIZATION);
        if given.is_none_or(|given| given.as_bytes() != format!("Bearer {token}").as_bytes()) {
            return (StatusCode::UNAUTHORIZED, "{}").into_response();
        }
    }
    if contents.refuses_downloads && method == Method::GET && uri.path().contains("/resolve/") {
        return (StatusCode::FORBIDDEN, "the link has expired").into_response();
    }
    let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "repos", "create"] => contents.create(&body),
        ["api", kind, owner, name, "revision", revision] => {
            contents.info(&format!("{kind}/{owner}/{name}"), revision)
        }
        ["api", "models", owner, name, "preupload", _] => {
            contents.preupload(&format!("models/{owner}/{name}"), &body)
        }
        ["api", "models", owner, name, "commit", _] => {
            contents.commit(&format!("models/{owner}/{name}"), &body)
        }
        ["datasets", owner, name, "resolve", _, file @ ..] => {
            contents.file(&format!("datasets/{owner}/{name}"), &file.join("/"))
        }
        [owner, name, "resolve", _, file @ ..] => {
            contents.file(&format!("models/{owner}/{name}"), &file.join("/"))
        }
        _ => missing("no such path"),
    }
}

fn missing(code: &'static str) -> Response {
    (StatusCode::NOT_FOUND, [("x-error-code", code)], "{}").into_response()
}

fn json(value: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}

impl Contents {
    fn info(&self, id: &str, revision: &str) -> Response {
        let Some(repository) = self.repositories.get(id) else {
            return missing("RepoNotFound");
        };
        if !["main", COMMIT].contains(&revision) {
            return missing("RevisionNotFound");
        }
        let names = repository.files.keys();
        let files: Vec<Value> = names.map(|name| json!({ "rfilename": name })).collect();
        let (_, name) = id.split_once('/').unwrap_or_default();
        json(&json!({ "id": name, "sha": COMMIT, "siblings": files }))
    }

    fn file(&self, id: &str, name: &str) -> Response {
        let found = self.repositories.get(id);
        let Some(bytes) = found.and_then(|repository| repository.files.get(name)) else {
            return missing("EntryNotFound");
        };
        let sum = name.bytes().chain(bytes.iter().copied()).fold(0, hash);
        let etag = format!("\"{sum:040x}\"");
        let headers = [("x-repo-commit", COMMIT.to_owned()), ("etag", etag)];
        (headers, bytes.clone()).into_response()
    }

    fn create(&mut self, body: &[u8]) -> Response {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let part = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let id = format!(
            "{}s/{}/{}",
            part("type"),
            part("organization"),
            part("name")
        );
        if self.repositories.contains_key(&id) {
            return (StatusCode::CONFLICT, "{}").into_response();
        }
        let repository = Repository {
            private: body["private"] == true,
            ..Repository::default()
        };
        self.repositories.insert(id.clone(), repository);
        json(&json!({ "url": format!("https://hub/{id}") }))
    }

    fn preupload(&self, id: &str, body: &[u8]) -> Response {
        if !self.repositories.contains_key(id) {
            return missing("RepoNotFound");
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let files = body["files"].as_array().cloned().unwrap_or_default();
        let regular = |file: &Value| json!({ "path": file["path"], "uploadMode": "regular" });
        let modes: Vec<Value> = files.iter().map(regular).collect();
        json(&json!({ "files": modes }))
    }

    /// One line is the message, each other line a file.
    fn commit(&mut self, id: &str, body: &[u8]) -> Response {
        let Some(repository) = self.repositories.get_mut(id) else {
            return missing("RepoNotFound");
        };
        let lines = body.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        for line in lines {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            let value = &line["value"];
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            if line["key"] == "header" {
                repository.messages.push(text("summary"));
                continue;
            }
            let Ok(bytes) = STANDARD.decode(text("content")) else {
                return (StatusCode::BAD_REQUEST, r#"{"error": "no base64"}"#).into_response();
            };
            repository.files.insert(text("path"), bytes);
        }
        json(&json!({ "commitOid": COMMIT, "commitUrl": "https://hub/commit" }))
    }
}

fn hash(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}
