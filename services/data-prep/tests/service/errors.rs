//! Wrong requests are refused with the right code and field, and nothing is queued.

use serde_json::{Value, json};
use togi_proto::dataprep::v1 as proto;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::rig::{System, lines, records};

fn field(status: &Status) -> String {
    let bad = status.get_details_bad_request();
    let first = bad.and_then(|bad| bad.field_violations.into_iter().next());
    first.map(|violation| violation.field).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_is_refused_by_field_and_nothing_is_queued() {
    let system = System::start().await;
    let upload = system.upload(&lines(&records(0, 3))).await;
    let absent = "cd".repeat(32);
    let table: Vec<(Value, Code, &str)> = vec![
        (json!({"name": "../songs"}), Code::InvalidArgument, "name"),
        (json!({"name": ""}), Code::InvalidArgument, "name"),
        (
            json!({"records": {"upload": absent}}),
            Code::NotFound,
            "records.upload",
        ),
        (
            json!({"records": {"upload": "../x"}}),
            Code::InvalidArgument,
            "records.upload",
        ),
        (
            json!({"records": {"format": "xlsx"}}),
            Code::InvalidArgument,
            "records.format",
        ),
        (
            json!({"records": {"columns": {"prompt": "a"}}}),
            Code::InvalidArgument,
            "records.columns",
        ),
        (
            json!({"tokenizer": {"upload": absent}}),
            Code::NotFound,
            "tokenizer.upload",
        ),
        (
            json!({"tokenizer": {"upload": upload}}),
            Code::InvalidArgument,
            "tokenizer.upload",
        ),
        (
            json!({"settings": {"max_length": 1}}),
            Code::InvalidArgument,
            "settings.max_length",
        ),
        (
            json!({"settings": {"validation_share": 1.5}}),
            Code::InvalidArgument,
            "settings.validation_share",
        ),
        (
            json!({"settings": {"validation_share": "NaN"}}),
            Code::InvalidArgument,
            "settings.validation_share",
        ),
        (
            json!({"settings": {"learn": "prompt"}}),
            Code::InvalidArgument,
            "settings.learn",
        ),
        (
            json!({"settings": {"over_long": "wrap"}}),
            Code::InvalidArgument,
            "settings.over_long",
        ),
        (
            json!({"on_bad_record": "keep"}),
            Code::InvalidArgument,
            "on_bad_record",
        ),
        (json!({"workers": 0}), Code::InvalidArgument, "workers"),
    ];
    for (edits, code, at) in table {
        let refused = system
            .submit(system.request(&upload, edits.clone()))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), field(&refused).as_str()),
            (code, at),
            "{edits}: {refused}"
        );
    }
    let mut named = system.request(&upload, json!({}));
    named.records = serde_json::from_value(json!({"configured": "nobody"})).unwrap();
    let refused = system.submit(named).await.unwrap_err();
    assert_eq!(
        (refused.code(), field(&refused).as_str()),
        (Code::NotFound, "records.configured")
    );
    let mut based = system.request(&upload, json!({}));
    based.tokenizer = serde_json::from_value(json!({"base": "nobody"})).unwrap();
    let refused = system.submit(based).await.unwrap_err();
    assert_eq!(
        (refused.code(), field(&refused).as_str()),
        (Code::NotFound, "tokenizer.base")
    );
    assert!(system.objects("jobs").is_empty());
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_bounded_and_stored_once() {
    let system = System::start_with(|config| config.prepare.max_upload_bytes = 2_000_000).await;
    let bytes = vec![7; 1_999_999];
    let id = system.upload(&bytes).await;
    let stored = system.objects("uploads");
    assert_eq!(system.upload(&bytes).await, id);
    assert!(stored == system.objects("uploads"), "it was written again");
    let large = system.try_upload(&vec![7; 2_000_001]).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted);
    let empty = system.try_upload(&[]).await.unwrap_err();
    assert_eq!(
        (empty.code(), field(&empty).as_str()),
        (Code::InvalidArgument, "chunk")
    );
    let chunk = proto::UploadRequest {
        chunk: vec![0; (1 << 20) + 1],
    };
    let wide = system
        .client()
        .await
        .upload(futures::stream::iter([chunk]))
        .await
        .unwrap_err();
    assert_eq!(
        (wide.code(), field(&wide).as_str()),
        (Code::InvalidArgument, "chunk")
    );
    assert!(stored == system.objects("uploads"));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_not_found() {
    let system = System::start().await;
    let mut client = system.client().await;
    let job = || "nobody".to_owned();
    let get = client
        .get_preparation(proto::GetPreparationRequest { job: job() })
        .await;
    assert_eq!(get.unwrap_err().code(), Code::NotFound);
    let watch = client
        .watch_preparation(proto::WatchPreparationRequest { job: job() })
        .await;
    assert_eq!(watch.unwrap_err().code(), Code::NotFound);
    let cancel = client
        .cancel_preparation(proto::CancelPreparationRequest { job: job() })
        .await;
    assert_eq!(cancel.unwrap_err().code(), Code::NotFound);
    for (dataset, code) in [
        ("nobody".to_owned(), Code::NotFound),
        ("ab".repeat(32), Code::NotFound),
        ("a/b".to_owned(), Code::InvalidArgument),
        (String::new(), Code::InvalidArgument),
    ] {
        let refused = client
            .get_dataset(proto::GetDatasetRequest { dataset })
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), field(&refused).as_str()),
            (code, "dataset")
        );
    }
    for request in [
        proto::ListDatasetsRequest {
            page_size: 1001,
            page_token: String::new(),
        },
        proto::ListDatasetsRequest {
            page_size: -1,
            page_token: String::new(),
        },
        proto::ListDatasetsRequest {
            page_size: 0,
            page_token: "mine".into(),
        },
    ] {
        let refused = client.list_datasets(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    system.stop().await;
}
