//! Preparations: rejects, repeated requests, names, events and progress.

use futures::StreamExt;
use serde_json::{Value, json};
use togi_proto::dataprep::v1 as proto;
use togi_proto::job::v1::JobState;
use togi_runtime::bus::reader::Start;
use togi_runtime::events::{Event, EventKind};
use togi_runtime::jobs::{Kind, State};
use togi_runtime::{JobId, Jobs, layout};
use togi_testing::wait_until;
use togi_tokens::manifest::Split;

use crate::rig::{System, lines, records};

fn with_bad_ones() -> Vec<u8> {
    let good = records(0, 3);
    let long = format!(
        "{{\"instruction\":\"長\",\"output\":\"{}\"}}",
        "あ".repeat(400_000)
    );
    let wide =
        json!({"instruction": "数", "output": "一".repeat(4_000), "index": "wide"}).to_string();
    let text = [
        &good[0].to_string(),
        "{\"instruction\": ",
        "[1, 2]",
        "",
        "{\"instruction\":\"問い\"}",
        "{\"instruction\":\"問い\",\"output\":7}",
        "{\"instruction\":\"問い\",\"output\":\"  \"}",
        &good[1].to_string(),
        &long,
        &wide,
        &good[2].to_string(),
    ];
    text.join("\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rejected_record_is_listed_with_its_line_and_reason() {
    let system = System::start().await;
    let edits = json!({"settings": {"over_long": "reject", "max_length": 512}});
    let digest = system.prepare(&with_bad_ones(), edits).await;
    let manifest = system.manifest(&digest).await;
    assert_eq!(
        (manifest.records_read, manifest.accepted, manifest.rejected),
        (10, 3, 7)
    );
    let rejects = system.rejects(&digest).await;
    let wanted = [
        (2, "", "not JSON"),
        (3, "", "expected an object"),
        (5, "output", "missing"),
        (6, "output", "expected a text"),
        (7, "output", "empty"),
        (9, "", "longer than 1048576 bytes"),
        (10, "", "more than max_length 512"),
    ];
    assert_eq!(rejects.len(), wanted.len());
    for (reject, (line, field, reason)) in rejects.iter().zip(wanted) {
        assert_eq!(reject["line"], line, "{reject}");
        assert_eq!(
            reject
                .get("field")
                .and_then(Value::as_str)
                .unwrap_or_default(),
            field
        );
        assert!(
            reject["reason"].as_str().unwrap().contains(reason),
            "{reject}"
        );
        let sample = reject["sample"].as_str().unwrap();
        assert!(!sample.is_empty() && sample.len() <= 256, "{reject}");
    }
    // If it is cut, the wide record becomes a row, and the data set is another.
    let cut = system.prepare(&with_bad_ones(), json!({})).await;
    assert_eq!(system.manifest(&cut).await.accepted, 4);
    assert_ne!(cut, digest);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_without_a_good_record_fail_and_say_why() {
    let system = System::start().await;
    let table: [(&[u8], Value, &str, &str); 6] = [
        (b"\n\n", json!({}), "the source has no records", "records"),
        (b"[]", json!({}), "the source has no records", "records"),
        (
            b"{}\n[]\n",
            json!({}),
            "all 2 records were rejected; record 1 because",
            "records",
        ),
        (
            b"[{\"instruction\":\"a\"",
            json!({}),
            "the JSON array does not end",
            "records",
        ),
        (
            &with_bad_ones(),
            json!({"on_bad_record": "fail"}),
            "record 2 was rejected: not JSON",
            "records",
        ),
        (
            &lines(&records(0, 3)),
            json!({"settings": {"validation_share": 0.999_999_999}}),
            "left no row to train on",
            "settings.validation_share",
        ),
    ];
    for (bytes, edits, message, field) in table {
        let upload = system.upload(bytes).await;
        let job = system.run(system.request(&upload, edits)).await;
        assert_eq!(job.state(), JobState::Failed);
        let error = job.error.unwrap();
        assert!(error.message.contains(message), "{}", error.message);
        assert_eq!(
            (error.code.as_str(), error.field.as_str()),
            ("INVALID_ARGUMENT", field)
        );
        assert_eq!(job.attempts, 1, "no second attempt can help");
    }
    assert!(system.objects("datasets").is_empty() && system.objects("names").is_empty());
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_workers_writes_the_same_bytes_and_a_repetition_writes_nothing() {
    let system = System::start().await;
    let mut all = lines(&records(0, 1500));
    all.extend_from_slice(&with_bad_ones());
    let settings = json!({"rows_per_shard": 400, "validation_share": 0.2, "learn": "answer"});
    let edits = |workers: u32| json!({"workers": workers, "settings": settings});
    let digest = system.prepare(&all, edits(1)).await;
    let manifest = system.manifest(&digest).await;
    assert!(
        manifest.of_split(Split::Train).count() >= 3
            && manifest.of_split(Split::Validation).count() == 1
    );
    let first = (system.objects("datasets"), system.objects("names"));
    assert_eq!(first.0.len(), manifest.parts.len() + 2);
    assert_eq!(first.1.len(), 1);
    for workers in [1, 2, 8] {
        assert_eq!(system.prepare(&all, edits(workers)).await, digest);
    }
    assert!(
        first == (system.objects("datasets"), system.objects("names")),
        "something was written"
    );
    // In another, empty store more workers make the same bytes.
    let other = System::start().await;
    assert_eq!(other.prepare(&all, edits(8)).await, digest);
    let bytes = |objects: std::collections::BTreeMap<_, (Vec<u8>, _)>| {
        objects
            .into_values()
            .map(|(bytes, _)| bytes)
            .collect::<Vec<_>>()
    };
    assert!(
        bytes(first.0) == bytes(other.objects("datasets")),
        "other bytes"
    );
    other.stop().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_has_revisions_and_each_is_said() {
    let system = System::start().await;
    let mut ready = system
        .context
        .bus
        .events(&[EventKind::DatasetReady], Start::New)
        .await
        .unwrap();
    let one = system.prepare(&lines(&records(0, 20)), json!({})).await;
    let two = system.prepare(&lines(&records(0, 21)), json!({})).await;
    let back = system.prepare(&lines(&records(0, 20)), json!({})).await;
    system.prepare(&lines(&records(0, 20)), json!({})).await;
    let other = system
        .prepare(&lines(&records(0, 21)), json!({"name": "airs"}))
        .await;
    assert!(one == back && one != two && two == other);
    let mut said = Vec::new();
    while said.len() < 4 {
        let Event::DatasetReady(event) = ready.next().await.unwrap().event else {
            panic!("another event")
        };
        said.push((event.name, event.revision, event.dataset, event.rows));
    }
    let songs =
        |revision, digest: &str, rows| ("songs".to_owned(), revision, digest.to_owned(), rows);
    assert_eq!(
        said[..3],
        [songs(1, &one, 20), songs(2, &two, 21), songs(3, &one, 20)]
    );
    assert_eq!(said[3].0, "airs");
    let mut client = system.client().await;
    let named = client
        .get_dataset(proto::GetDatasetRequest {
            dataset: "songs".into(),
        })
        .await;
    let named = named.unwrap().into_inner().dataset.unwrap();
    assert_eq!(
        (named.revision, named.digest.as_str(), named.rows),
        (3, one.as_str(), 20)
    );
    assert!(named.create_time.is_some() && named.tokens > 20);
    let by_digest = client
        .get_dataset(proto::GetDatasetRequest {
            dataset: two.clone(),
        })
        .await;
    assert_eq!(by_digest.unwrap().into_inner().dataset.unwrap().digest, two);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_sets_are_listed_by_page() {
    let system = System::start().await;
    let upload = system.upload(&lines(&records(0, 5))).await;
    for name in ["delta", "alpha", "echo", "bravo", "charlie"] {
        system
            .run(system.request(&upload, json!({"name": name})))
            .await;
    }
    let mut client = system.client().await;
    let (mut names, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = proto::ListDatasetsRequest {
            page_size: 2,
            page_token,
        };
        let page = client.list_datasets(request).await.unwrap().into_inner();
        names.extend(page.datasets.into_iter().map(|dataset| dataset.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["alpha", "bravo", "charlie", "delta", "echo"]);
    assert_eq!(pages, 3);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_name_hides_no_other_and_is_gone_over() {
    let system = System::start().await;
    let upload = system.upload(&lines(&records(0, 5))).await;
    let prepare = async |name: &str| {
        let request = system.request(&upload, json!({"name": name}));
        assert_eq!(system.run(request).await.state(), JobState::Succeeded);
    };
    for name in ["alpha", "bravo", "charlie"] {
        prepare(name).await;
    }
    let store = &system.context.store;
    let broken = layout::name_revision("bravo", 2);
    store.put(&broken, "no JSON").await.unwrap();
    let mut client = system.client().await;
    let mut listed = async || {
        let request = proto::ListDatasetsRequest::default();
        let page = client.list_datasets(request).await.unwrap().into_inner();
        let named = page.datasets.into_iter();
        named
            .map(|dataset| (dataset.name, dataset.revision))
            .collect::<Vec<_>>()
    };
    let expected = |named: &[(&str, u64)]| -> Vec<(String, u64)> {
        let named = named.iter();
        named.map(|(name, n)| (name.to_string(), *n)).collect()
    };
    assert_eq!(listed().await, expected(&[("alpha", 1), ("charlie", 1)]));
    prepare("bravo").await;
    let all = [("alpha", 1), ("bravo", 3), ("charlie", 1)];
    assert_eq!(listed().await, expected(&all));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_and_body_is_the_same_job_and_another_body_is_refused() {
    let system = System::start().await;
    let upload = system.upload(&lines(&records(0, 5))).await;
    let request = system.request(&upload, json!({"idempotency_key": "k1"}));
    let one = system.submit(request.clone()).await.unwrap();
    assert_eq!(system.end_of(&one.id).await.state(), JobState::Succeeded);
    assert_eq!(system.submit(request.clone()).await.unwrap().id, one.id);
    // This also holds after its records were deleted.
    let records = layout::upload(&upload);
    system.context.store.delete(&records).await.unwrap();
    assert_eq!(system.submit(request).await.unwrap().id, one.id);
    let other = system.request(&upload, json!({"idempotency_key": "k1", "name": "other"}));
    assert_eq!(
        system.submit(other).await.unwrap_err().code(),
        tonic::Code::AlreadyExists
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_attempt_takes_no_name_back() {
    let mut system = System::start().await;
    let upload = system.upload(&lines(&records(0, 5))).await;
    let first = system.run(system.request(&upload, json!({}))).await;
    let second = system.prepare(&lines(&records(0, 6)), json!({})).await;
    // This is the state after the first job's worker died before it wrote the end, and NATS was
    // lost too.
    system.rig.nats.kill();
    system.rig.nats.wipe();
    let id: JobId = first.id.parse().unwrap();
    let store = system.context.store.clone();
    store.delete(&layout::job_final(&id)).await.unwrap();
    system.rig.nats.resume();
    let jobs = Jobs::new(&system.context.bus, &store);
    wait_until("the first one is there again", async || {
        jobs.reconcile(Kind::Prepare).await.is_ok()
    })
    .await;
    wait_until("and has ended again", async || {
        let job = jobs.get(&id).await.unwrap();
        job.state == State::Succeeded
    })
    .await;
    let asked = proto::GetDatasetRequest {
        dataset: "songs".into(),
    };
    let named = system.client().await.get_dataset(asked).await.unwrap();
    let named = named.into_inner().dataset.unwrap();
    assert_eq!((named.digest, named.revision), (second, 2));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_tells_its_progress_and_ends_when_cancelled() {
    let system = System::start().await;
    // There are enough records that the job still runs when it is cancelled.
    let upload = system.upload(&lines(&records(0, 400_000))).await;
    let job = system
        .submit(system.request(&upload, json!({"workers": 1})))
        .await
        .unwrap();
    let request = proto::WatchPreparationRequest {
        job: job.id.clone(),
    };
    let mut updates = system
        .client()
        .await
        .watch_preparation(request)
        .await
        .unwrap()
        .into_inner();
    let mut asked = false;
    let mut last = None;
    while let Some(update) = updates.message().await.unwrap() {
        if update.records_read > 0 && !asked {
            assert!(update.bytes_read > 0 && update.bytes_total > update.records_read);
            let request = proto::CancelPreparationRequest {
                job: job.id.clone(),
            };
            system
                .client()
                .await
                .cancel_preparation(request)
                .await
                .unwrap();
            asked = true;
        }
        last = update.job;
    }
    assert!(asked);
    assert_eq!(last.unwrap().state(), JobState::Cancelled);
    assert!(system.objects("datasets").is_empty());
    system.stop().await;
}
