//! A preparation as it was asked for, checked as far as the request alone goes: what the service
//! itself works with.

use togi_proto::dataprep::v1 as proto;
use togi_runtime::Error;
use togi_runtime::layout::{validate_digest, validate_name};
use togi_runtime::store::hub::{HubRef, RepoKind};
use togi_tokens::record::Columns;
use togi_tokens::row::{Learn, OverLong, Settings};

use crate::Result;
use crate::input::Format;
use crate::pipeline::OnBadRecord;

/// Most tokenizing threads that a request may ask for.
const MAX_WORKERS: u32 = 256;
/// Most ids in a row: the longest context that GPT-NeoX models have, with room to spare.
const MAX_LENGTH: u32 = 32_768;
/// Most ids in a shard, as rows times `max_length`: what a thread holds while it writes one (64
/// MiB).
const MAX_SHARD_IDS: u64 = 1 << 23;
/// Most bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 256;

/// Where records come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordsFrom {
    /// An upload, by its SHA-256.
    Upload(String),
    /// A source of the configuration, by its name.
    Configured(String),
    /// A hub's data set, `hf://datasets/OWNER/NAME[@REVISION]`.
    Hub(HubRef),
}

/// Where a tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenizerFrom {
    /// A base of the configuration, by its name.
    Base(String),
    /// An upload, by its SHA-256.
    Upload(String),
}

/// A preparation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The data set's name.
    pub name: String,
    /// Where the records are.
    pub records: RecordsFrom,
    /// The records' format; told from the bytes if not set.
    pub format: Option<Format>,
    /// What the source calls our columns.
    pub columns: Columns,
    /// Where the tokenizer is.
    pub tokenizer: TokenizerFrom,
    /// How records become rows.
    pub settings: Settings,
    /// What a bad record does.
    pub on_bad_record: OnBadRecord,
    /// Tokenizing threads; the configuration's if not set.
    pub workers: Option<usize>,
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
        } = request
            .records
            .ok_or_else(|| Error::invalid("records", "records must be set"))?;
        let renamed = columns
            .iter()
            .map(|(ours, theirs)| (ours.as_str(), theirs.as_str()));
        let columns =
            Columns::new(renamed).map_err(|e| Error::invalid("records.columns", e.to_string()))?;
        let workers = request
            .workers
            .map(|count| in_range("workers", count, 1, MAX_WORKERS));
        if request.idempotency_key.len() > MAX_KEY_BYTES {
            let text = format!("idempotency_key must have at most {MAX_KEY_BYTES} bytes");
            return Err(Error::invalid("idempotency_key", text));
        }
        Ok(Self {
            name: request.name,
            records: records(source)?,
            format: self::format(&format)?,
            columns,
            tokenizer: tokenizer(request.tokenizer)?,
            settings: settings(request.settings.unwrap_or_default())?,
            on_bad_record: on_bad_record(&request.on_bad_record)?,
            workers: workers.transpose()?.map(|count| count as usize),
        })
    }
}

fn records(source: Option<proto::record_source::Source>) -> Result<RecordsFrom> {
    use proto::record_source::Source;
    match source {
        Some(Source::Upload(id)) => {
            validate_digest("records.upload", &id)?;
            Ok(RecordsFrom::Upload(id))
        }
        Some(Source::Configured(name)) => {
            validate_name("records.configured", &name)?;
            Ok(RecordsFrom::Configured(name))
        }
        Some(Source::Hub(url)) => Ok(RecordsFrom::Hub(hub(&url)?)),
        None => Err(Error::invalid(
            "records",
            "records must name an upload, a configured source or a hub",
        )),
    }
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

fn format(word: &str) -> Result<Option<Format>> {
    if word.is_empty() {
        return Ok(None);
    }
    word.parse()
        .map(Some)
        .map_err(|()| one_of("records.format", word, "json, jsonl, parquet"))
}

fn tokenizer(source: Option<proto::TokenizerSource>) -> Result<TokenizerFrom> {
    use proto::tokenizer_source::Source;
    match source.and_then(|tokenizer| tokenizer.source) {
        Some(Source::Base(name)) => {
            validate_name("tokenizer.base", &name)?;
            Ok(TokenizerFrom::Base(name))
        }
        Some(Source::Upload(id)) => {
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
            "" | "all" => Learn::All,
            "answer" => Learn::Answer,
            word => return Err(one_of("settings.learn", word, "all, answer")),
        },
        over_long: match asked.over_long.as_str() {
            "" | "truncate" => OverLong::Truncate,
            "reject" => OverLong::Reject,
            word => return Err(one_of("settings.over_long", word, "truncate, reject")),
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
    match word {
        "" | "skip" => Ok(OnBadRecord::Skip),
        "fail" => Ok(OnBadRecord::Fail),
        word => Err(one_of("on_bad_record", word, "skip, fail")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(request.columns.names()[1], "context");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        use proto::record_source::Source;
        type Edit = fn(&mut proto::PrepareRequest);
        fn set(r: &mut proto::PrepareRequest) -> &mut proto::PrepareSettings {
            r.settings.get_or_insert_default()
        }
        fn from(r: &mut proto::PrepareRequest, source: Source) {
            r.records.get_or_insert_default().source = Some(source);
        }
        let table: Vec<(&str, Edit)> = vec![
            ("name", |r| r.name = "../x".into()),
            ("name", |r| r.name.clear()),
            ("records", |r| r.records = None),
            ("records", |r| r.records = Some(Default::default())),
            ("records.upload", |r| from(r, Source::Upload("x".into()))),
            ("records.configured", |r| {
                from(r, Source::Configured("a/b".into()))
            }),
            ("records.hub", |r| {
                from(r, Source::Hub("https://example.org/x".into()))
            }),
            ("records.hub", |r| {
                from(r, Source::Hub("hf://datasets/../x".into()))
            }),
            ("records.hub", |r| {
                from(r, Source::Hub("hf://owner/model".into()))
            }),
            ("records.hub", |r| {
                from(r, Source::Hub("hf://datasets/a/b@../c".into()))
            }),
            ("records.format", |r| {
                r.records.as_mut().unwrap().format = "csv".into()
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
