//! The hub's client against a small server that speaks the hub's paths.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use togi_runtime::Class;
use togi_runtime::store::folder;
use togi_runtime::store::hub::{Hub, HubRef, RepoKind};

const COMMIT: &str = "0123456789012345678901234567890123456789";

#[derive(Clone, Default)]
struct Served {
    bodies: Arc<AtomicUsize>,
}

async fn info(Path((owner, name, revision)): Path<(String, String, String)>) -> impl IntoResponse {
    if owner != "kunishou" || !["main", COMMIT].contains(&revision.as_str()) {
        let code = if owner == "kunishou" {
            "RevisionNotFound"
        } else {
            "RepoNotFound"
        };
        return (
            StatusCode::NOT_FOUND,
            [("x-error-code", code)],
            String::new(),
        );
    }
    let files = [
        "README.md",
        "config.json",
        "data.json",
        "model.safetensors",
        "pytorch_model.bin",
    ];
    let files: Vec<_> = files
        .iter()
        .map(|file| serde_json::json!({ "rfilename": file }))
        .collect();
    let body = serde_json::json!({
        "id": format!("{owner}/{name}"), "sha": COMMIT, "private": false,
        "siblings": files.into_iter().chain([serde_json::json!({ "rfilename": "../../escape.json" })]).collect::<Vec<_>>(),
    });
    (
        StatusCode::OK,
        [("content-type", "application/json")],
        body.to_string(),
    )
}

async fn file(
    State(served): State<Served>,
    method: axum::http::Method,
    Path((_owner, _name, commit, path)): Path<(String, String, String, String)>,
) -> impl IntoResponse {
    let body = format!("{path} of {commit}");
    let mut headers = HeaderMap::new();
    headers.insert("x-repo-commit", commit.parse().unwrap());
    headers.insert(
        header::ETAG,
        format!("\"{:040}\"", path.len()).parse().unwrap(),
    );
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    if method == axum::http::Method::GET {
        served.bodies.fetch_add(1, Ordering::SeqCst);
        return (headers, body);
    }
    (headers, String::new())
}

async fn serve() -> (String, Served) {
    let served = Served::default();
    let router = Router::new()
        .route(
            "/api/datasets/{owner}/{name}/revision/{revision}",
            get(info),
        )
        .route("/api/models/{owner}/{name}/revision/{revision}", get(info))
        .route(
            "/datasets/{owner}/{name}/resolve/{commit}/{*path}",
            get(file),
        )
        .route("/{owner}/{name}/resolve/{commit}/{*path}", get(file))
        .with_state(served.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_becomes_a_commit_and_its_files_are_fetched_once() {
    let (endpoint, served) = serve().await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::at(&endpoint, cache.path()).unwrap();
    let reference = HubRef::parse("hub", "hf://datasets/kunishou/databricks-dolly-15k-ja").unwrap();
    assert_eq!(reference.kind, RepoKind::Dataset);
    let snapshot = hub
        .snapshot(&reference, |name| {
            name.ends_with("data.json") || name.contains("escape")
        })
        .await
        .unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    let names: Vec<&str> = snapshot
        .files
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["data.json"]);
    assert!(
        snapshot.folder.ends_with(COMMIT),
        "{}",
        snapshot.folder.display()
    );
    assert_eq!(
        std::fs::read_to_string(&snapshot.files[0].1).unwrap(),
        format!("data.json of {COMMIT}")
    );
    let again = hub
        .snapshot(&reference, |name| name == "data.json")
        .await
        .unwrap();
    assert_eq!(again, snapshot);
    assert_eq!(served.bodies.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_comes_without_what_it_has_twice() {
    let (endpoint, _served) = serve().await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::at(&endpoint, cache.path()).unwrap();
    let reference = HubRef::parse("url", &format!("hf://kunishou/base@{COMMIT}")).unwrap();
    let path = folder::from_hub(&hub, &reference).await.unwrap();
    assert!(path.join("config.json").exists() && path.join("model.safetensors").exists());
    assert!(!path.join("pytorch_model.bin").exists() && !path.join("README.md").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_a_hub_that_is_away_is_unavailable() {
    let (endpoint, _served) = serve().await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::at(&endpoint, cache.path()).unwrap();
    for text in [
        "hf://datasets/nobody/nothing",
        "hf://datasets/kunishou/x@no-such-branch",
    ] {
        let reference = HubRef::parse("hub", text).unwrap();
        let error = hub.snapshot(&reference, |_| true).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound, "{}", error.chain());
        assert!(error.message().contains(text), "{error}");
    }
    let away = Hub::at("http://127.0.0.1:1", cache.path()).unwrap();
    let reference = HubRef::parse("hub", "hf://a/b").unwrap();
    let error = away.snapshot(&reference, |_| true).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(Hub::at("not a url", cache.path()).is_err());
}
