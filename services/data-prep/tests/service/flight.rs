//! Arrow Flight: rows in the documented order from any row, for any client.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::{Criteria, FlightDescriptor, FlightInfo, Ticket};
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use togi_common::Digest;
use togi_runtime::layout;
use togi_tokens::manifest::{DatasetManifest, Split};
use togi_tokens::order::Permutation;
use togi_tokens::row::{Learn, Row};
use togi_tokens::shard;
use tonic::{Code, Status};

use crate::rig::{System, lines, records};

async fn get(system: &System, ticket: Value) -> Result<Vec<Row>, Status> {
    let batches = batches(system, ticket).await?;
    let rows = batches
        .iter()
        .flat_map(|batch| shard::from_batch(batch).unwrap());
    Ok(rows.collect())
}

async fn batches(system: &System, ticket: Value) -> Result<Vec<RecordBatch>, Status> {
    let ticket = Ticket {
        ticket: serde_json::to_vec(&ticket).unwrap().into(),
    };
    let answer = system.flight().await.do_get(ticket).await?.into_inner();
    let stream = FlightRecordBatchStream::new_from_flight_data(answer.map_err(FlightError::from));
    stream.try_collect().await.map_err(Status::from)
}

async fn info(system: &System, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
    Ok(system
        .flight()
        .await
        .get_flight_info(descriptor)
        .await?
        .into_inner())
}

async fn prepared(system: &System) -> String {
    let settings = json!({"settings": {"rows_per_shard": 100, "validation_share": 0.1}});
    system.prepare(&lines(&records(0, 1000)), settings).await
}

/// Limits so small that shards leave the cache and windows end within a data set.
async fn cramped() -> System {
    System::start_with(|config| {
        config.flight.cache_bytes = 150_000;
        config.flight.window_rows = 130;
        config.flight.batch_rows = 50;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_in_the_permutation_and_resume_at_any_offset() {
    let system = cramped().await;
    let digest = prepared(&system).await;
    let stored = get(&system, json!({"dataset": digest})).await.unwrap();
    let manifest = system.manifest(&digest).await;
    assert_eq!(
        stored.len() as u64,
        manifest.rows(togi_tokens::Split::Train)
    );
    let tokens: usize = stored.iter().map(|row| row.input_ids.len()).sum();
    assert_eq!(tokens as u64, manifest.tokens(togi_tokens::Split::Train));
    for (seed, epoch) in [(42_u64, 0_u64), (42, 1), (u64::MAX, 7)] {
        let order = Permutation::new(stored.len() as u64, seed, epoch);
        let wanted: Vec<Row> = order
            .from(0)
            .map(|row| stored[usize::try_from(row).unwrap()].clone())
            .collect();
        for offset in [0, 1, 129, 131, 777, stored.len()] {
            let ticket = json!({"dataset": digest, "seed": seed.to_string(), "epoch": epoch.to_string(),
                "offset": offset.to_string(), "shuffle": true});
            let rows = get(&system, ticket).await.unwrap();
            assert!(
                rows == wanted[offset..],
                "seed {seed}, epoch {epoch}, offset {offset}"
            );
        }
    }
    let kept = get(&system, json!({"dataset": digest, "split": "validation"}))
        .await
        .unwrap();
    assert!(!kept.is_empty() && kept.len() + stored.len() == 1000);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_some_columns_gets_those_alone() {
    let system = cramped().await;
    let digest = prepared(&system).await;
    let stored = get(&system, json!({"dataset": digest})).await.unwrap();
    let ticket = json!({"dataset": digest, "columns": ["length"]});
    let batches = batches(&system, ticket.clone()).await.unwrap();
    assert!(batches.iter().all(|batch| batch.num_columns() == 1));
    let lengths = batches
        .iter()
        .flat_map(|batch| shard::lengths(batch).unwrap());
    let wanted = stored.iter().map(|row| row.input_ids.len() as u32);
    assert!(lengths.eq(wanted));
    let info = info(&system, FlightDescriptor::new_cmd(ticket.to_string()));
    let schema = info.await.unwrap().try_decode_schema().unwrap();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["length"]);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_sets_are_found_by_name_digest_and_listing() {
    let system = System::start().await;
    let digest = prepared(&system).await;
    system
        .prepare(&lines(&records(0, 7)), json!({"name": "airs"}))
        .await;
    for path in [vec!["songs".to_owned()], vec![digest.clone()]] {
        let info = info(&system, FlightDescriptor::new_path(path))
            .await
            .unwrap();
        let ticket: Value =
            serde_json::from_slice(&info.endpoint[0].ticket.as_ref().unwrap().ticket).unwrap();
        assert_eq!(ticket["dataset"], digest.as_str());
        assert!(info.endpoint[0].location.is_empty());
        assert_eq!(
            get(&system, ticket).await.unwrap().len() as i64,
            info.total_records
        );
        assert_eq!(
            info.try_decode_schema().unwrap().fields(),
            shard::schema().fields()
        );
    }
    let cmd = json!({"dataset": "songs", "offset": "3", "shuffle": true, "seed": "9"}).to_string();
    let shuffled = info(&system, FlightDescriptor::new_cmd(cmd)).await.unwrap();
    let ticket: Value =
        serde_json::from_slice(&shuffled.endpoint[0].ticket.as_ref().unwrap().ticket).unwrap();
    assert_eq!(
        (&ticket["offset"], &ticket["seed"]),
        (&json!("3"), &json!("9"))
    );
    assert_eq!(
        get(&system, ticket).await.unwrap().len() as i64,
        shuffled.total_records
    );
    let descriptor = FlightDescriptor::new_path(vec!["songs".into()]);
    let schema = system
        .flight()
        .await
        .get_schema(descriptor)
        .await
        .unwrap()
        .into_inner();
    let schema = arrow_schema::Schema::try_from(&schema).unwrap();
    assert_eq!(schema.fields(), shard::schema().fields());
    let listed = |prefix: &'static str| {
        let system = &system;
        async move {
            let criteria = Criteria {
                expression: prefix.into(),
            };
            let flights = system
                .flight()
                .await
                .list_flights(criteria)
                .await
                .unwrap()
                .into_inner();
            let flights: Vec<FlightInfo> = flights.try_collect().await.unwrap();
            let paths = flights
                .into_iter()
                .map(|f| f.flight_descriptor.unwrap().path.join("/"));
            paths.collect::<Vec<_>>()
        }
    };
    assert_eq!(listed("").await, ["airs", "songs", "songs/validation"]);
    assert_eq!(listed("ai").await, ["airs"]);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_ticket_is_refused_and_a_damaged_shard_never_served() {
    let system = System::start().await;
    let digest = prepared(&system).await;
    let table = [
        (json!({"dataset": "ab".repeat(32)}), Code::NotFound),
        (json!({"dataset": "songs"}), Code::InvalidArgument),
        (json!({"dataset": digest, "rows": 3}), Code::InvalidArgument),
        (
            json!({"dataset": digest, "split": "test"}),
            Code::InvalidArgument,
        ),
        (
            json!({"dataset": digest, "offset": "1001"}),
            Code::InvalidArgument,
        ),
        (
            json!({"dataset": digest, "offset": -1}),
            Code::InvalidArgument,
        ),
    ];
    for (ticket, code) in table {
        assert_eq!(
            get(&system, ticket.clone()).await.unwrap_err().code(),
            code,
            "{ticket}"
        );
    }
    let unknown = FlightDescriptor::new_path(vec!["nobody".into()]);
    assert_eq!(
        info(&system, unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    let part = layout::dataset_part(digest.parse().unwrap(), 3);
    let mut bytes = system.context.store.get(&part).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    system.context.store.put(&part, bytes).await.unwrap();
    assert_eq!(
        get(&system, json!({"dataset": digest}))
            .await
            .unwrap_err()
            .code(),
        Code::DataLoss
    );
    system.stop().await;
}

/// Its bytes are the manifest's, so that asking again does not help: a reader must not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_of_another_form_is_data_loss_and_names_the_object() {
    let system = System::start().await;
    let digest = prepared(&system).await;
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(["q"]));
    let batch = RecordBatch::try_from_iter([("sample_id", column)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let id = digest.parse().unwrap();
    let mut manifest = system.manifest(&digest).await;
    manifest.parts[0].sha256 = Digest::of(&bytes).to_string();
    manifest.parts[0].size_bytes = bytes.len() as u64;
    let store = &system.context.store;
    let part = layout::dataset_part(id, 0);
    store.put(&part, bytes).await.unwrap();
    let path = layout::dataset_manifest(id);
    store.put(&path, manifest.to_json()).await.unwrap();
    let error = get(&system, json!({"dataset": digest})).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    let says = error.message();
    assert!(
        says.contains(part.as_ref()) && says.contains("prepare the data set again"),
        "{says}"
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_believed_only_where_its_shards_say_the_same() {
    type Edit = fn(&mut DatasetManifest);
    let system = System::start().await;
    let digest = system.prepare(&lines(&records(0, 40)), json!({})).await;
    let path = layout::dataset_manifest(digest.parse().unwrap());
    let good = system.manifest(&digest).await;
    let edits: [(&str, Edit); 7] = [
        ("ids", |m| m.parts[0].tokens += 1),
        ("max_length", |m| m.settings.max_length += 1),
        ("learn", |m| m.settings.learn = Learn::Answer),
        ("tokenizer", |m| m.tokenizer_digest = "1".repeat(64)),
        ("template", |m| m.template_digest = "2".repeat(64)),
        ("split", |m| m.parts[0].split = Split::Validation),
        ("names", |m| m.parts[0].path = "rejects.jsonl".into()),
    ];
    let store = &system.context.store;
    for (says, edit) in edits {
        let mut manifest = good.clone();
        edit(&mut manifest);
        store.put(&path, manifest.to_json()).await.unwrap();
        let split = manifest.parts[0].split.name();
        let ticket = json!({"dataset": digest, "split": split});
        let error = get(&system, ticket).await.unwrap_err();
        assert_eq!(error.code(), Code::DataLoss, "{error}");
        assert!(error.message().contains(says), "{says}: {error}");
    }
    store.put(&path, good.to_json()).await.unwrap();
    let rows = get(&system, json!({"dataset": digest})).await.unwrap();
    assert_eq!(rows.len(), 40);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reader_too_many_is_refused_at_once() {
    let system = System::start_with(|config| config.flight.max_readers = 1).await;
    let digest = prepared(&system).await;
    let ticket = || Ticket {
        ticket: serde_json::to_vec(&json!({"dataset": digest}))
            .unwrap()
            .into(),
    };
    let mut flight = system.flight().await;
    let reading = flight.do_get(ticket()).await.unwrap();
    let refused = flight.do_get(ticket()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(reading);
    togi_testing::wait_until("the first reader's place is free", async || {
        system.flight().await.do_get(ticket()).await.is_ok()
    })
    .await;
    system.stop().await;
}
