//! The hub's client and its cache against a hub in this process.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use togi_runtime::Class;
use togi_runtime::store::folder;
use togi_runtime::store::hub::{
    Access, Environment, Hub, HubRef, Resolved, Snapshot, Upload, Visibility,
};
use togi_testing::LocalHub;
use togi_testing::hub::COMMIT;

const DATA: &str = "hf://datasets/kunishou/databricks-dolly-15k-ja";
const BASE: &str = "hf://kunishou/base";

/// A hub with a data set and a base, and a cache without files.
struct Bench {
    hub: LocalHub,
    cache: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let hub = LocalHub::start().await;
        let data = DATA.trim_start_matches("hf://");
        for name in ["README.md", "data.json", "other.json", "../../escape.json"] {
            hub.put(data, name, format!("{name} of the data set"));
        }
        for name in [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "spiece.model",
        ] {
            hub.put("models/kunishou/base", name, format!("{name} of the base"));
        }
        Self {
            hub,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    fn with(&self, access: Access) -> Hub {
        self.at(&self.hub.endpoint, access)
    }

    fn at(&self, endpoint: &str, access: Access) -> Hub {
        let environment = Environment {
            access,
            ..Environment::at(endpoint, self.cache.path())
        };
        Hub::new(environment).unwrap()
    }

    /// Where nothing listens.
    fn away(&self) -> Hub {
        self.at("http://127.0.0.1:1", Access::Online)
    }

    /// The base's part of the cache.
    fn base(&self) -> std::path::PathBuf {
        self.cache.path().join("models--kunishou--base")
    }
}

fn reference(text: &str) -> HubRef {
    HubRef::parse("hub", text).unwrap()
}

fn pinned(text: &str) -> HubRef {
    reference(&format!("{text}@{COMMIT}"))
}

async fn resolved(hub: &Hub, reference: &HubRef) -> togi_runtime::Result<Resolved> {
    hub.resolve(reference, |_| false).await
}

async fn snapshot(hub: &Hub, reference: &HubRef, file: &str) -> togi_runtime::Result<Snapshot> {
    let resolved = resolved(hub, reference).await?;
    let wanted: Vec<String> = resolved
        .names
        .iter()
        .filter(|name| *name == file)
        .cloned()
        .collect();
    hub.fetch(&resolved, &wanted).await
}

/// Writes a cache as huggingface_hub's `hf download` does: links to blobs, without a listing.
fn write_cache(folder: &Path, files: &[&str]) {
    let snapshot = folder.join("snapshots").join(COMMIT);
    for made in [&snapshot, &folder.join("blobs"), &folder.join("refs")] {
        std::fs::create_dir_all(made).unwrap();
    }
    std::fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for file in files {
        std::fs::write(folder.join("blobs").join(file), file).unwrap();
        let blob = format!("../../blobs/{file}");
        std::os::unix::fs::symlink(blob, snapshot.join(file)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_becomes_a_commit_and_its_files_are_fetched_once() {
    let bench = Bench::start().await;
    let hub = bench.with(Access::Online);
    let names = resolved(&hub, &reference(DATA)).await.unwrap().names;
    assert_eq!(names, ["README.md", "data.json", "other.json"]);
    let first = snapshot(&hub, &reference(DATA), "data.json").await.unwrap();
    assert_eq!(first.commit, COMMIT);
    assert!(first.folder.ends_with(COMMIT), "{}", first.folder.display());
    let [(name, path)] = first.files.as_slice() else {
        panic!("{first:?}")
    };
    assert_eq!(name, "data.json");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, "data.json of the data set");
    let again = snapshot(&hub, &reference(DATA), "data.json").await.unwrap();
    assert_eq!(again, first);
    let got = |request: &String| request.starts_with("GET") && request.contains("/resolve/");
    let requests = bench.hub.requests();
    assert_eq!(
        requests.iter().filter(|r| got(r)).count(),
        1,
        "{requests:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_comes_without_what_it_has_twice() {
    let bench = Bench::start().await;
    let hub = bench.with(Access::Online);
    let local = folder::from_hub(&hub, &reference(BASE)).await.unwrap();
    assert_eq!(local.origin, format!("{BASE}@{COMMIT}"));
    let has = |name: &str| local.folder.join(name).exists();
    assert!(has("config.json") && has("model.safetensors") && has("spiece.model"));
    assert!(!has("pytorch_model.bin") && !has("README.md"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_needs_no_hub_by_its_commit_and_offline_by_its_branch() {
    let bench = Bench::start().await;
    let filled = folder::from_hub(&bench.with(Access::Online), &reference(BASE)).await;
    let filled = filled.unwrap();
    assert!(!bench.hub.requests().is_empty());
    let pinned_online = folder::from_hub(&bench.with(Access::Online), &pinned(BASE)).await;
    assert_eq!(pinned_online.unwrap(), filled);
    for reference in [reference(BASE), pinned(BASE)] {
        let offline = folder::from_hub(&bench.with(Access::Offline), &reference).await;
        assert_eq!(offline.unwrap(), filled, "{reference}");
    }
    assert_eq!(bench.hub.requests(), [""; 0], "nothing was asked");
    // A hub that is away is replaced by what it said last.
    let away = folder::from_hub(&bench.away(), &reference(BASE)).await;
    assert_eq!(away.unwrap(), filled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_hf_download_is_found_by_branch_and_by_commit() {
    let bench = Bench::start().await;
    let whole = ["config.json", "model.safetensors", "spiece.model"];
    write_cache(&bench.base(), &whole);
    for access in [Access::Online, Access::Offline] {
        let found = folder::from_hub(&bench.with(access), &pinned(BASE)).await;
        assert!(found.unwrap().folder.ends_with(COMMIT), "{access:?}");
    }
    let by_branch = folder::from_hub(&bench.with(Access::Offline), &reference(BASE)).await;
    assert!(by_branch.unwrap().folder.join("config.json").exists());
    assert_eq!(bench.hub.requests(), [""; 0], "nothing was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_cached_commit_lacks_is_named_offline_and_fetched_online() {
    let bench = Bench::start().await;
    write_cache(&bench.base(), &["config.json", "spiece.model"]);
    for reference in [reference(BASE), pinned(BASE)] {
        let error = folder::from_hub(&bench.with(Access::Offline), &reference).await;
        let error = error.unwrap_err();
        assert_eq!(error.class(), Class::FailedPrecondition);
        let said = error.message();
        assert!(said.contains("model.safetensors missing"), "{said}");
        assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
        let error = folder::from_hub(&bench.away(), &reference)
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        let said = error.message();
        assert!(said.contains("model.safetensors missing"), "{said}");
    }
    // huggingface_hub's own listing says what there is beside the files that every base has.
    let listing = r#"{"format_version": 1, "files": {
        "config.json": {"size": 1, "blob_id": "a"}, "spiece.model": {"size": 1, "blob_id": "b"},
        "model.safetensors": {"size": 1, "blob_id": "c"}, "generation_config.json": {}}}"#;
    std::fs::create_dir(bench.base().join("trees")).unwrap();
    let tree = bench.base().join("trees").join(format!("{COMMIT}.json"));
    std::fs::write(tree, listing).unwrap();
    let error = folder::from_hub(&bench.with(Access::Offline), &reference(BASE)).await;
    let said = error.unwrap_err().to_string();
    assert!(
        said.contains("generation_config.json, model.safetensors missing"),
        "{said}"
    );
    let online = folder::from_hub(&bench.with(Access::Online), &pinned(BASE)).await;
    let folder = online.unwrap().folder;
    let text = std::fs::read_to_string(folder.join("model.safetensors")).unwrap();
    assert_eq!(text, "model.safetensors of the base");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_cached_is_refused_at_once_offline() {
    let bench = Bench::start().await;
    for text in [DATA, BASE, "hf://a/b@main"] {
        let error = resolved(&bench.with(Access::Offline), &reference(text)).await;
        let error = error.unwrap_err();
        assert_eq!(error.class(), Class::FailedPrecondition);
        assert!(!error.class().retryable());
        for part in [text, "HF_HUB_OFFLINE", "togi fetch"] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
    }
    assert_eq!(bench.hub.requests(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_a_hub_that_is_away_is_unavailable() {
    let bench = Bench::start().await;
    let hub = bench.with(Access::Online);
    for text in [
        "hf://datasets/nobody/nothing",
        &format!("{DATA}@no-such-branch"),
    ] {
        let error = resolved(&hub, &reference(text)).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound, "{}", error.chain());
        assert!(error.message().contains(text), "{error}");
    }
    // A revision that does not exist is not replaced by the cache.
    write_cache(
        &bench.base(),
        &["config.json", "model.safetensors", "spiece.model"],
    );
    let refs = bench.base().join("refs");
    std::fs::copy(refs.join("main"), refs.join("gone")).unwrap();
    let gone = reference(&format!("{BASE}@gone"));
    let error = resolved(&hub, &gone).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    let error = resolved(&bench.away(), &reference("hf://a/b"))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(Hub::new(Environment::at("not a url", bench.cache.path())).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_of_an_error_is_never_kept_as_a_file() {
    let bench = Bench::start().await;
    let hub = bench.with(Access::Online);
    bench.hub.refuse_downloads();
    let error = snapshot(&hub, &reference(DATA), "data.json").await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.message().contains("data.json"), "{error}");
    bench.hub.put("datasets/me/other", "x", "x");
    let found = snapshot(&hub, &reference(DATA), "data.json").await.unwrap();
    let text = std::fs::read_to_string(&found.files[0].1).unwrap();
    assert_eq!(text, "data.json of the data set");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_says_nothing_is_not_waited_for() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cache = tempfile::tempdir().unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let hub = Hub::new(Environment {
        listing_patience: Duration::from_millis(200),
        ..Environment::at(endpoint, cache.path())
    });
    let error = resolved(&hub.unwrap(), &reference(BASE)).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.message().contains("said nothing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_committed_to_a_private_repository_with_the_right_token_alone() {
    let bench = Bench::start().await;
    bench.hub.require_token("hf_right");
    let upload = |visibility| Upload {
        files: vec![("a/b.txt".to_owned(), "研ぎ".into())],
        message: "A message".to_owned(),
        visibility,
    };
    let to = reference("hf://me/mine");
    let with = |token: Option<&str>, access| {
        let environment = Environment {
            token: token.map(str::to_owned),
            access,
            ..Environment::at(&bench.hub.endpoint, bench.cache.path())
        };
        Hub::new(environment).unwrap()
    };
    for (token, access) in [
        (None, Access::Online),
        (Some("hf_wrong"), Access::Online),
        (Some("hf_right"), Access::Offline),
    ] {
        let hub = with(token, access);
        let refused = hub.publish(&to, upload(Visibility::Public)).await;
        let error = refused.unwrap_err();
        assert_eq!(error.class(), Class::FailedPrecondition, "{token:?}");
    }
    assert_eq!(bench.hub.repository("models/me/mine"), None);
    let hub = with(Some("hf_right"), Access::Online);
    // A second commit goes into the repository as it is.
    for visibility in [Visibility::Private, Visibility::Public] {
        let published = hub.publish(&to, upload(visibility)).await.unwrap();
        assert_eq!(published.commit.as_deref(), Some(COMMIT));
    }
    let made = bench.hub.repository("models/me/mine").unwrap();
    assert!(made.private);
    assert_eq!(made.files["a/b.txt"], "研ぎ".as_bytes());
    assert_eq!(made.messages, ["A message"; 2]);
    let data = reference(DATA);
    let error = hub.publish(&data, upload(Visibility::Private)).await;
    assert_eq!(error.unwrap_err().class(), Class::InvalidArgument);
}
