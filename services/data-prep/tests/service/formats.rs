//! The same records are the same data set in every format and at every location.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use togi_proto::job::v1::{Job, JobState};
use togi_runtime::config::StoreConfig;
use togi_tokens::manifest::Split;

use crate::rig::{System, lines, records};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn parquet(records: &[Value]) -> Vec<u8> {
    let column = |name: &str| {
        let texts = records.iter().map(|record| record[name].as_str().unwrap());
        Arc::new(StringArray::from_iter_values(texts)) as ArrayRef
    };
    let names = ["category", "index", "instruction", "input", "output"];
    let batch = RecordBatch::try_from_iter(names.map(|name| (name, column(name)))).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(70))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn english(records: &[Value]) -> Vec<Value> {
    let rename = |record: &Value| {
        json!({
            "index": record["index"].as_str().unwrap().parse::<u64>().unwrap(),
            "instruction": record["instruction"],
            "context": record["input"],
            "response": record["output"],
            "category": record["category"],
        })
    };
    records.iter().map(rename).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_the_same_records_is_the_same_data_set() {
    let system = System::start().await;
    let records = records(0, 200);
    let array = serde_json::to_vec_pretty(&records).unwrap();
    let lines_of = lines(&records);
    let table = parquet(&records);
    let digest = system.prepare(&lines_of, json!({})).await;
    let manifest = system.manifest(&digest).await;
    assert_eq!(
        (manifest.records_read, manifest.accepted, manifest.rejected),
        (200, 200, 0)
    );
    let renamed = json!({"records": {"columns": {"input": "context", "output": "response"}}});
    let forms: Vec<(&str, Vec<u8>, Value)> = vec![
        ("array", array.clone(), json!({})),
        (
            "array by name",
            array.clone(),
            json!({"records": {"format": "json"}}),
        ),
        ("lines.gz", gzip(&lines_of), json!({})),
        (
            "array.gz",
            gzip(&array),
            json!({"records": {"format": "json"}}),
        ),
        (
            "lines.zst",
            zstd::encode_all(&lines_of[..], 3).unwrap(),
            json!({}),
        ),
        (
            "array.zst",
            zstd::encode_all(&array[..], 3).unwrap(),
            json!({}),
        ),
        ("table", table.clone(), json!({})),
        (
            "table.gz",
            gzip(&table),
            json!({"records": {"format": "parquet"}}),
        ),
        ("renamed", lines(&english(&records)), renamed),
    ];
    for (form, bytes, edits) in forms {
        assert_eq!(system.prepare(&bytes, edits).await, digest, "{form}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_sources_are_an_object_or_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let records = records(0, 60);
    std::fs::create_dir(folder.path().join("parts")).unwrap();
    std::fs::write(folder.path().join("all.jsonl"), lines(&records)).unwrap();
    std::fs::write(
        folder.path().join("parts/a.json.gz"),
        gzip(&serde_json::to_vec(&records[..25]).unwrap()),
    )
    .unwrap();
    let mut rest = lines(&records[25..]);
    rest.extend_from_slice(b"{\"broken\n");
    std::fs::write(folder.path().join("parts/b.jsonl"), rest).unwrap();
    std::fs::write(folder.path().join("parts/README.md"), "no records").unwrap();
    let url = |name: &str| StoreConfig {
        url: format!("file://{}/{name}", folder.path().display()),
        options: [].into(),
        secrets: None,
    };
    let system = System::start_with(|config| {
        config.sources.insert("whole".into(), url("all.jsonl"));
        config.sources.insert("parts".into(), url("parts/"));
        config.sources.insert("gone".into(), url("gone.jsonl"));
    })
    .await;
    let of = |name: &str| {
        let mut request = system.request("", json!({}));
        request.records = serde_json::from_value(json!({"configured": name})).unwrap();
        request
    };
    let whole = system.run(of("whole")).await;
    assert_eq!(whole.state(), JobState::Succeeded, "{:?}", whole.error);
    assert_eq!(system.manifest(&whole.result).await.accepted, 60);
    let parts = system.run(of("parts")).await;
    assert_eq!(parts.state(), JobState::Succeeded, "{:?}", parts.error);
    let manifest = system.manifest(&parts.result).await;
    assert_eq!((manifest.accepted, manifest.rejected), (60, 1));
    let rejects = system.rejects(&parts.result).await;
    assert_eq!(
        (&rejects[0]["file"], &rejects[0]["line"]),
        (&json!("b.jsonl"), &json!(36))
    );
    let gone = system.run(of("gone")).await;
    let error = gone.error.clone().unwrap();
    assert_eq!(gone.state(), JobState::Failed);
    assert_eq!(
        (error.code.as_str(), error.field.as_str()),
        ("NOT_FOUND", "records.configured")
    );
    system.stop().await;
}

/// A source of the configuration that is a folder, prepared with edits of its record source.
async fn of_folder(folder: &std::path::Path, edits: Value) -> (System, Job) {
    let url = StoreConfig {
        url: format!("file://{}/", folder.display()),
        options: [].into(),
        secrets: None,
    };
    let system = System::start_with(|config| {
        config.sources.insert("folder".into(), url);
    })
    .await;
    let mut records = json!({"configured": "folder"});
    records
        .as_object_mut()
        .unwrap()
        .extend(edits.as_object().unwrap().clone());
    let mut request = system.request("", json!({}));
    request.records = serde_json::from_value(records).unwrap();
    let job = system.run(request).await;
    (system, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_counts_once_however_many_links_lead_to_it() {
    // A mounted ConfigMap's layout, a folder that another name leads to, and a hard link.
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("..2026_11_28")).unwrap();
    std::fs::write(at("..2026_11_28/records.jsonl"), lines(&records(0, 5))).unwrap();
    symlink("..2026_11_28", at("..data")).unwrap();
    symlink("..data/records.jsonl", at("records.jsonl")).unwrap();
    std::fs::create_dir(at("2026-11-27")).unwrap();
    std::fs::write(at("2026-11-27/more.jsonl"), lines(&records(5, 8))).unwrap();
    symlink("2026-11-27", at("latest")).unwrap();
    std::fs::hard_link(at("2026-11-27/more.jsonl"), at("same.jsonl")).unwrap();
    let (system, job) = of_folder(folder.path(), json!({})).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
    assert_eq!(system.manifest(&job.result).await.records_read, 8);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_pipe_in_a_folder_is_refused_by_name_and_holds_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a.jsonl"), lines(&records(0, 5))).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(at("b.jsonl"))
        .status();
    assert!(made.unwrap().success());
    let (system, job) = of_folder(folder.path(), json!({})).await;
    let error = job.error.unwrap();
    assert_eq!(error.code, "FAILED_PRECONDITION", "{}", error.message);
    assert!(
        error.message.contains("b.jsonl is a named pipe"),
        "{}",
        error.message
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn separated_cells_are_read_only_without_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a.jsonl"), lines(&records(0, 5))).unwrap();
    std::fs::write(at("b.csv"), "instruction,output\nq,a\n").unwrap();
    for read in [5, 1] {
        let (system, job) = of_folder(folder.path(), json!({})).await;
        assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
        assert_eq!(system.manifest(&job.result).await.records_read, read);
        system.stop().await;
        let _ = std::fs::remove_file(at("a.jsonl"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_test_split_is_left_out_and_validation_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    for (name, from, to) in [("train", 0, 3), ("validation", 3, 5), ("test", 5, 9)] {
        let path = folder.path().join(format!("data/{name}.jsonl"));
        std::fs::write(path, lines(&records(from, to))).unwrap();
    }
    let table = [
        (json!({}), Some((3, 2))),
        (json!({"validationSplit": "none"}), Some((3, 0))),
        (
            json!({"split": "test", "validationSplit": "train"}),
            Some((4, 3)),
        ),
        (json!({"split": "train+validation+test"}), Some((9, 0))),
        (json!({"split": "trian"}), None),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (edits, wanted) in table {
        let (system, job) = of_folder(folder.path(), edits.clone()).await;
        match wanted {
            Some((train, validation)) => {
                assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.error);
                let manifest = system.manifest(&job.result).await;
                let rows = (
                    manifest.rows(Split::Train),
                    manifest.rows(Split::Validation),
                );
                assert_eq!(rows, (train, validation), "{edits}");
                assert!(seen.insert(job.result), "{edits} is another data set");
            }
            None => {
                let error = job.error.unwrap();
                assert_eq!(
                    (error.code.as_str(), error.field.as_str()),
                    ("INVALID_ARGUMENT", "records.split")
                );
                assert!(
                    error
                        .message
                        .ends_with("its splits are test, train, validation")
                );
            }
        }
        system.stop().await;
    }
}
