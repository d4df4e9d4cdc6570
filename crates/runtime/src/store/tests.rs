//! The store over a real folder: created, equal and refused objects.

use std::collections::BTreeMap;

use togi_testing::http::{Answer, answering};

use super::*;

async fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreConfig::folder(folder.path()).unwrap())
        .await
        .unwrap();
    (folder, store)
}

fn key(text: &str) -> Path {
    Path::from(text)
}

#[tokio::test]
async fn put_new_creates_once_accepts_equal_bytes_and_refuses_others() {
    let (_folder, store) = store().await;
    let key = key("a/b.json");
    assert_eq!(store.put_new(&key, "1").await.unwrap(), Put::Created);
    assert_eq!(store.put_new(&key, "1").await.unwrap(), Put::Same);
    assert_eq!(
        store.put_new(&key, "2").await.unwrap_err().class(),
        Class::AlreadyExists
    );
    assert_eq!(store.get(&key).await.unwrap(), "1");
    let missing = store.get(&layout::probe("none")).await.unwrap_err();
    assert_eq!(missing.class(), Class::NotFound);
    assert!(!missing.message().contains("tmp"), "{missing}");
}

#[tokio::test]
async fn a_missing_folder_is_made_and_the_probe_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not/yet");
    let store = Store::open(&StoreConfig::folder(&deep).unwrap())
        .await
        .unwrap();
    assert!(store.list(&Path::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn racing_writers_get_different_revisions() {
    let (_folder, store) = store().await;
    let folder = key("names/n");
    let writers = (0..8).map(|writer| {
        let (store, folder) = (store.clone(), folder.clone());
        async move {
            store
                .append_revision(&folder, |n| Ok(Bytes::from(format!("{writer} {n}"))))
                .await
                .unwrap()
        }
    });
    let mut numbers = futures::future::join_all(writers).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<u64>>());
    assert_eq!(store.newest_revision(&folder).await.unwrap().unwrap().0, 8);
}

#[tokio::test]
async fn streams_and_files_arrive_whole_or_not_at_all() {
    let (folder, store) = store().await;
    let big = vec![7u8; (CHUNK_BYTES * 2) + 5];
    let local = folder.path().join("big");
    std::fs::write(&local, &big).unwrap();
    let size = store.put_file(&key("uploads/x"), &local).await.unwrap();
    assert_eq!(size, big.len() as u64);
    assert_eq!(store.get(&key("uploads/x")).await.unwrap(), big);
    assert_eq!(
        store.get_range(&key("uploads/x"), 0..3).await.unwrap(),
        &[7, 7, 7][..]
    );
    let broken = futures::stream::iter([
        Ok(Bytes::from(vec![1; 9 << 20])),
        Err(Error::internal("broken")),
    ]);
    assert!(store.put_stream(&key("uploads/y"), broken).await.is_err());
    assert!(!store.exists(&key("uploads/y")).await.unwrap());
    assert_eq!(
        store
            .get_bounded(&key("uploads/x"), 10)
            .await
            .unwrap_err()
            .class(),
        Class::ResourceExhausted
    );
}

#[tokio::test]
async fn folders_are_listed_by_name() {
    let (_folder, store) = store().await;
    for name in [
        "jobs/b/request.json",
        "jobs/a/request.json",
        "jobs/a/final.json",
    ] {
        store.put_new(&key(name), "{}").await.unwrap();
    }
    assert_eq!(store.list_dirs(&layout::jobs()).await.unwrap(), ["a", "b"]);
    assert_eq!(store.list(&key("jobs/a")).await.unwrap().len(), 2);
    store.delete(&key("jobs/a/final.json")).await.unwrap();
    store.delete(&key("jobs/a/final.json")).await.unwrap();
}

#[test]
fn urls_and_options_that_are_wrong_are_refused_without_their_secrets() {
    let none = BTreeMap::new();
    for bad in ["", "folder", "ftp://host/x", "s3://user:secret@"] {
        let error = connect(bad, &none).unwrap_err();
        assert!(!error.chain().contains("secret"), "{}", error.chain());
    }
    let options = BTreeMap::from([("no_such_option".to_owned(), "1".to_owned())]);
    let error = connect("s3://bucket", &options).unwrap_err();
    assert_eq!(error.field(), Some("store.options"));
}

#[test]
fn options_come_from_a_file_too_and_what_is_wrong_with_it_is_said_without_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secrets");
    let config = StoreConfig {
        url: "s3://bucket".into(),
        options: BTreeMap::from([
            ("region".into(), "a".into()),
            ("endpoint".into(), "e".into()),
        ]),
        secrets: Some(file.clone()),
    };
    let refused = || {
        let error = config.all_options().unwrap_err();
        assert_eq!(error.field(), Some("store.secrets"));
        error.chain()
    };
    assert!(
        refused().contains("secrets cannot be read"),
        "{}",
        refused()
    );
    std::fs::write(&file, "AWS_ACCESS_KEY_ID = id\n\nregion=b\n").unwrap();
    let options = config.all_options().unwrap();
    let expected = [
        ("aws_access_key_id", "id"),
        ("endpoint", "e"),
        ("region", "b"),
    ];
    assert_eq!(options, expected.map(|(k, v)| (k.into(), v.into())).into());
    std::fs::write(&file, "region=b\nhunter2\n").unwrap();
    let said = refused();
    assert!(
        said.contains("line 2") && !said.contains("hunter2"),
        "{said}"
    );
}

#[tokio::test]
async fn a_store_that_answers_503_to_what_it_did_is_opened_all_the_same() {
    crate::life::crypto::install_crypto();
    // The write was done, so its repetition and the second writer find the object.
    let statuses = [
        "503 Slow Down",
        "412 Precondition Failed",
        "412 Precondition Failed",
    ];
    let last = std::iter::repeat("204 No Content");
    let answers = statuses.into_iter().chain(last).map(|status| Answer {
        status,
        etag: Some("\"1\""),
        body: String::new(),
    });
    let endpoint = answering(answers);
    let options = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_region", "x"),
        ("aws_access_key_id", "x"),
        ("aws_secret_access_key", "x"),
    ];
    let config = StoreConfig {
        url: "s3://models".into(),
        options: options
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        secrets: None,
    };
    Store::open(&config).await.unwrap();
}
