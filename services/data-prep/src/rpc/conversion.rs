//! Requests and data sets between protobuf and our types.
//!
//! A request is checked here as far as that needs no store. A job's stored request is the proto3
//! JSON of the request, as bare NATS clients write it too.

use togi_proto::dataprep::v1 as proto;
use togi_proto::dataprep::v1::record_source::Source as RecordSource;
use togi_proto::dataprep::v1::tokenizer_source::Source as TokenizerSource;
use togi_proto::events::v1::DatasetReady;
use togi_runtime::layout::{self, validate_digest, validate_name};
use togi_runtime::store::hub::{HubRef, RepoKind};
use togi_runtime::{Error, Result};
use togi_tokens::manifest::{DatasetManifest, Split};
use togi_tokens::record::Columns;
use togi_tokens::row::{Learn, OverLong, Settings};
use togi_tokens::shape::{Asked, Shape};

use crate::catalog::Named;
use crate::input::{WORDS, Word};
use crate::pipeline::OnBadRecord;
use crate::request::Request;
use crate::source::RecordsFrom;
use crate::splits::Choice;
use crate::tokenizers::TokenizerFrom;

/// Most tokenizing threads of a request.
const MAX_WORKERS: u32 = 256;
/// Most ids in a row; more than the longest context of any GPT-NeoX model.
const MAX_LENGTH: u32 = 32_768;
/// Most ids in a shard, as rows times `max_length`. A thread holds them while it writes the shard:
/// 64 MiB.
const MAX_SHARD_IDS: u64 = 1 << 23;
/// Most bytes of a split's name.
const MAX_SPLIT_BYTES: usize = 256;
/// Most bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 256;

/// Reads a job's stored request.
///
/// # Errors
/// `InvalidArgument` with the field's name.
pub fn request_from_json(json: &[u8]) -> Result<Request> {
    let request: proto::PrepareRequest = serde_json::from_slice(json)
        .map_err(|e| Error::invalid("request", format!("not a preparation's request: {e}")))?;
    request.try_into()
}

/// Returns the event that a name points at a committed data set.
pub(crate) fn dataset_ready(
    name: &str,
    revision: u64,
    read_as: &str,
    manifest: &DatasetManifest,
) -> DatasetReady {
    DatasetReady {
        dataset: manifest.dataset.into(),
        name: name.to_owned(),
        revision,
        manifest: layout::dataset_manifest(manifest.dataset).to_string(),
        rows: manifest.rows(Split::Train),
        rejected: manifest.rejected,
        read_as: read_as.to_owned(),
    }
}

impl TryFrom<proto::PrepareRequest> for Request {
    type Error = Error;

    /// Fails with `InvalidArgument` and the field's name.
    fn try_from(request: proto::PrepareRequest) -> Result<Self> {
        validate_name("name", &request.name)?;
        let proto::RecordSource {
            source,
            format,
            columns,
            split,
            validation_split,
        } = request
            .records
            .ok_or_else(|| Error::invalid("records", "records must be set"))?;
        let renamed = columns
            .iter()
            .map(|(ours, theirs)| (ours.as_str(), theirs.as_str()));
        let word = word(&format)?;
        let shape = shape(word, Columns::new(renamed))
            .map_err(|e| Error::invalid("records.columns", e.to_string()))?;
        let workers = request
            .workers
            .map(|count| in_range("workers", count, 1, MAX_WORKERS));
        if request.idempotency_key.len() > MAX_KEY_BYTES {
            let text = format!("idempotency_key must have at most {MAX_KEY_BYTES} bytes");
            return Err(Error::invalid("idempotency_key", text));
        }
        Ok(Self {
            name: request.name,
            splits: splits(source.as_ref(), split, validation_split)?,
            records: records(source)?,
            format: match word {
                Some(Word::File(format)) => Some(format),
                _ => None,
            },
            shape,
            tokenizer: tokenizer(request.tokenizer)?,
            settings: settings(request.settings.unwrap_or_default())?,
            on_bad_record: on_bad_record(&request.on_bad_record)?,
            workers: workers.transpose()?.map(|count| count as usize),
        })
    }
}

fn records(source: Option<RecordSource>) -> Result<RecordsFrom> {
    match source {
        Some(RecordSource::Upload(id)) => {
            validate_digest("records.upload", &id)?;
            Ok(RecordsFrom::Upload(id))
        }
        Some(RecordSource::Configured(name)) => {
            validate_name("records.configured", &name)?;
            Ok(RecordsFrom::Configured(name))
        }
        Some(RecordSource::Hub(url)) => Ok(RecordsFrom::Hub(hub(&url)?)),
        None => Err(Error::invalid(
            "records",
            "records must name an upload, a configured source or a hub",
        )),
    }
}

fn splits(source: Option<&RecordSource>, train: String, validation: String) -> Result<Choice> {
    let named = [
        ("records.split", train),
        ("records.validation_split", validation),
    ];
    let [train, validation] = named.map(|(field, split)| {
        if split.is_empty() {
            return Ok(None);
        }
        if matches!(source, Some(RecordSource::Upload(_))) {
            let text = format!("{field}: an upload is one file and has no splits");
            return Err(Error::invalid(field, text));
        }
        if split.len() > MAX_SPLIT_BYTES {
            let text = format!("{field} must have at most {MAX_SPLIT_BYTES} bytes");
            return Err(Error::invalid(field, text));
        }
        Ok(Some(split))
    });
    Ok(Choice {
        train: train?,
        validation: validation?,
    })
}

fn hub(url: &str) -> Result<HubRef> {
    const FIELD: &str = "records.hub";
    let reference = HubRef::parse(FIELD, url)?;
    if reference.kind != RepoKind::Dataset {
        return Err(Error::invalid(
            FIELD,
            format!("{FIELD} must name a data set: hf://datasets/…"),
        ));
    }
    Ok(reference)
}

fn word(word: &str) -> Result<Option<Word>> {
    if word.is_empty() {
        return Ok(None);
    }
    let read = Word::from_name(word);
    let read = read.ok_or_else(|| one_of("records.format", word, &WORDS.join(", ")))?;
    Ok(Some(read))
}

fn shape(
    word: Option<Word>,
    columns: togi_tokens::Result<Columns>,
) -> togi_tokens::Result<Option<Shape>> {
    let form = match word {
        Some(Word::Records(form)) => Some(form),
        _ => None,
    };
    let columns = columns?;
    Asked { form, columns }.shape()
}

fn tokenizer(source: Option<proto::TokenizerSource>) -> Result<TokenizerFrom> {
    match source.and_then(|tokenizer| tokenizer.source) {
        Some(TokenizerSource::Base(name)) => {
            validate_name("tokenizer.base", &name)?;
            Ok(TokenizerFrom::Base(name))
        }
        Some(TokenizerSource::Upload(id)) => {
            validate_digest("tokenizer.upload", &id)?;
            Ok(TokenizerFrom::Upload(id))
        }
        None => Err(Error::invalid(
            "tokenizer",
            "tokenizer must name a base or an upload",
        )),
    }
}

fn settings(asked: proto::PrepareSettings) -> Result<Settings> {
    let default = Settings::default();
    let max_length = asked.max_length.unwrap_or(default.max_length);
    let rows_per_shard = asked.rows_per_shard.unwrap_or(default.rows_per_shard);
    let settings = Settings {
        max_length: in_range("settings.max_length", max_length, 2, MAX_LENGTH)?,
        learn: match asked.learn.as_str() {
            "" => default.learn,
            word => Learn::from_name(word)
                .ok_or_else(|| one_of("settings.learn", word, "all, answer"))?,
        },
        over_long: match asked.over_long.as_str() {
            "" => default.over_long,
            word => OverLong::from_name(word)
                .ok_or_else(|| one_of("settings.over_long", word, "truncate, reject"))?,
        },
        validation_share: asked.validation_share.unwrap_or(default.validation_share),
        rows_per_shard,
    };
    if u64::from(rows_per_shard) * u64::from(max_length) > MAX_SHARD_IDS {
        let most = MAX_SHARD_IDS / u64::from(max_length);
        let text =
            format!("settings.rows_per_shard must be at most {most} with max_length {max_length}");
        return Err(Error::invalid("settings.rows_per_shard", text));
    }
    settings.validate().map_err(|error| match error {
        togi_tokens::Error::Setting { field, reason } => {
            let field = format!("settings.{field}");
            Error::invalid(&field, format!("{field}: {reason}"))
        }
        other => Error::invalid("settings", other.to_string()),
    })?;
    Ok(settings)
}

fn on_bad_record(word: &str) -> Result<OnBadRecord> {
    if word.is_empty() {
        return Ok(OnBadRecord::Skip);
    }
    OnBadRecord::from_name(word).ok_or_else(|| one_of("on_bad_record", word, "skip, fail"))
}

fn in_range(field: &str, value: u32, least: u32, most: u32) -> Result<u32> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(
        field,
        format!("{field} must be {least} to {most}, not {value}"),
    ))
}

fn one_of(field: &str, word: &str, words: &str) -> Error {
    let shown: String = word.chars().take(40).collect();
    Error::invalid(
        field,
        format!("{field} must be one of {words}, not {shown:?}"),
    )
}

impl From<Named> for proto::Dataset {
    fn from(named: Named) -> Self {
        let Named {
            name,
            revision,
            create_time,
            read_as,
            manifest,
        } = named;
        Self {
            name,
            revision,
            read_as,
            rows: manifest.rows(Split::Train),
            validation_rows: manifest.rows(Split::Validation),
            tokens: manifest.tokens(Split::Train),
            records_read: manifest.records_read,
            rejected: manifest.rejected,
            max_length: manifest.settings.max_length,
            learn: manifest.settings.learn.name().to_owned(),
            digest: manifest.dataset.into(),
            tokenizer_digest: manifest.tokenizer_digest,
            template_digest: manifest.template_digest,
            create_time: create_time.map(|time| pbjson_types::Timestamp {
                seconds: time.as_second(),
                nanos: time.subsec_nanosecond(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Format;

    fn good() -> proto::PrepareRequest {
        let upload = "ab".repeat(32);
        serde_json::from_value(serde_json::json!({
            "name": "dolly",
            "records": {"upload": upload, "columns": {"input": "context"}},
            "tokenizer": {"upload": upload},
        }))
        .unwrap()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let request = Request::try_from(good()).unwrap();
        assert_eq!(request.settings, Settings::default());
        assert_eq!(request.settings.max_length, 512);
        assert_eq!(
            (request.on_bad_record, request.format),
            (OnBadRecord::Skip, None)
        );
        let shape = request.shape.unwrap();
        assert!(shape.wanted().contains(&"context"), "{:?}", shape.wanted());
    }

    /// Jobs of earlier versions have this spelling in the store, and a repeated request is the same
    /// job only if it is written alike.
    #[test]
    fn a_stored_request_keeps_its_spelling() {
        let upload = "ab".repeat(32);
        let stored = serde_json::json!({
            "name": "dolly",
            "records": {"upload": upload, "format": "jsonl", "columns": {"input": "context"}},
            "tokenizer": {"base": "rinna"},
            "settings": {
                "maxLength": 64,
                "learn": "answer",
                "overLong": "reject",
                "validationShare": 0.25,
                "rowsPerShard": 8,
            },
            "onBadRecord": "fail",
            "workers": 3,
            "idempotencyKey": "k",
        });
        let read: proto::PrepareRequest = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), stored);
        let other = serde_json::json!({
            "name": "dolly",
            "records": {"upload": upload, "format": "jsonl", "columns": {"input": "context"}},
            "tokenizer": {"base": "rinna"},
            "settings": {
                "max_length": "64",
                "learn": "answer",
                "over_long": "reject",
                "validation_share": 0.25,
                "rows_per_shard": "8",
            },
            "on_bad_record": "fail",
            "workers": "3",
            "idempotency_key": "k",
        });
        for json in [stored, other] {
            let request = request_from_json(json.to_string().as_bytes()).unwrap();
            assert_eq!(
                (request.records, request.tokenizer),
                (
                    RecordsFrom::Upload(upload.clone()),
                    TokenizerFrom::Base("rinna".into())
                )
            );
            let settings = Settings {
                max_length: 64,
                learn: Learn::Answer,
                over_long: OverLong::Reject,
                validation_share: 0.25,
                rows_per_shard: 8,
            };
            assert_eq!(request.settings, settings);
            assert_eq!(
                (request.on_bad_record, request.workers, request.format),
                (OnBadRecord::Fail, Some(3), Some(Format::JsonLines))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        type Edit = fn(&mut proto::PrepareRequest);
        fn set(r: &mut proto::PrepareRequest) -> &mut proto::PrepareSettings {
            r.settings.get_or_insert_default()
        }
        fn from(r: &mut proto::PrepareRequest, source: RecordSource) {
            r.records.get_or_insert_default().source = Some(source);
        }
        let table: Vec<(&str, Edit)> = vec![
            ("name", |r| r.name = "../x".into()),
            ("name", |r| r.name.clear()),
            ("records", |r| r.records = None),
            ("records", |r| r.records = Some(Default::default())),
            ("records.upload", |r| {
                from(r, RecordSource::Upload("x".into()))
            }),
            ("records.configured", |r| {
                from(r, RecordSource::Configured("a/b".into()))
            }),
            ("records.hub", |r| {
                from(r, RecordSource::Hub("https://example.org/x".into()))
            }),
            ("records.hub", |r| {
                from(r, RecordSource::Hub("hf://datasets/../x".into()))
            }),
            ("records.hub", |r| {
                from(r, RecordSource::Hub("hf://owner/model".into()))
            }),
            ("records.hub", |r| {
                from(r, RecordSource::Hub("hf://datasets/a/b@../c".into()))
            }),
            ("records.format", |r| {
                r.records.as_mut().unwrap().format = "xlsx".into()
            }),
            ("records.columns", |r| {
                r.records.as_mut().unwrap().format = "messages".into()
            }),
            ("records.split", |r| {
                r.records.as_mut().unwrap().split = "test".into()
            }),
            ("records.validation_split", |r| {
                r.records.as_mut().unwrap().validation_split = "dev".into()
            }),
            ("records.columns", |r| {
                r.records.as_mut().unwrap().columns = [("prompt".into(), "x".into())].into();
            }),
            ("tokenizer", |r| r.tokenizer = None),
            ("settings.max_length", |r| set(r).max_length = Some(0)),
            ("settings.max_length", |r| set(r).max_length = Some(1 << 30)),
            ("settings.learn", |r| set(r).learn = "question".into()),
            ("settings.over_long", |r| set(r).over_long = "keep".into()),
            ("settings.validation_share", |r| {
                set(r).validation_share = Some(f64::NAN)
            }),
            ("settings.validation_share", |r| {
                set(r).validation_share = Some(1.0)
            }),
            ("settings.validation_share", |r| {
                set(r).validation_share = Some(-0.5)
            }),
            ("settings.rows_per_shard", |r| {
                set(r).rows_per_shard = Some(0)
            }),
            ("settings.rows_per_shard", |r| {
                set(r).rows_per_shard = Some(1 << 20)
            }),
            ("on_bad_record", |r| r.on_bad_record = "ignore".into()),
            ("workers", |r| r.workers = Some(0)),
            ("workers", |r| r.workers = Some(100_000)),
            ("idempotency_key", |r| r.idempotency_key = "k".repeat(300)),
        ];
        for (at, (field, edit)) in table.into_iter().enumerate() {
            let mut request = good();
            edit(&mut request);
            let error = Request::try_from(request).unwrap_err();
            assert_eq!(error.class(), togi_runtime::Class::InvalidArgument, "{at}");
            assert_eq!(error.field(), Some(field), "{at}: {}", error.message());
        }
    }
}
