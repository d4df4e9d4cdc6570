//! Records in the forms in which people have them: read as the same data set, or refused by name.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, LargeStringArray, RecordBatch, StringArray, StringViewArray,
};
use arrow_schema::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use togi_proto::dataprep::v1::GetDatasetRequest;
use togi_proto::job::v1::JobState;

use crate::rig::{System, lines};

const COLUMNS: [&str; 5] = ["instruction", "input", "output", "category", "index"];

/// Records with everything that a separated cell must quote.
fn records() -> Vec<Value> {
    let record = |n: usize| {
        json!({
            "instruction": format!("{n}番の\"歌\"は、何？"),
            "input": if n.is_multiple_of(2) { String::new() } else { format!("1行目, {n}\n2行目;\t\"終\"") },
            "output": format!("「{}」,\r\nです。", "さくら".repeat(n % 5 + 1)),
            "category": "qa",
            "index": n.to_string(),
        })
    };
    (0..130).map(record).collect()
}

fn text<'a>(record: &'a Value, column: &str) -> &'a str {
    record[column].as_str().unwrap()
}

fn separated(records: &[Value], separator: &str, end: &str) -> Vec<u8> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut out = format!("\u{feff}{}{end}", COLUMNS.join(separator));
    for record in records {
        let cells: Vec<String> = COLUMNS
            .iter()
            .map(|name| quoted(text(record, name)))
            .collect();
        out += &cells.join(separator);
        out += end;
    }
    out.into_bytes()
}

/// Each record's messages, as pairs of role and text.
fn said(record: &Value) -> Vec<(&'static str, String)> {
    let [instruction, input, output] =
        ["instruction", "input", "output"].map(|name| text(record, name).to_owned());
    if input.is_empty() {
        return vec![("user", instruction), ("assistant", output)];
    }
    vec![
        ("system", instruction),
        ("user", input),
        ("assistant", output),
    ]
}

fn chats(records: &[Value], list: &str, keys: [&str; 2], names: [&str; 3]) -> Vec<Value> {
    let name = |role: &str| match role {
        "system" => names[0],
        "user" => names[1],
        _ => names[2],
    };
    let chat = |record: &Value| {
        let messages: Vec<Value> = said(record)
            .into_iter()
            .map(|(role, text)| json!({keys[0]: name(role), keys[1]: text}))
            .collect();
        json!({list: messages, "category": record["category"], "index": record["index"]})
    };
    records.iter().map(chat).collect()
}

fn renamed(records: &[Value], names: [&str; 3]) -> Vec<Value> {
    let rename = |record: &Value| {
        json!({
            names[0]: record["instruction"],
            names[1]: record["input"],
            names[2]: record["output"],
            "category": record["category"],
            "index": record["index"],
        })
    };
    records.iter().map(rename).collect()
}

fn parquet(columns: Vec<(&str, ArrayRef)>, compression: Compression) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(50))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn table<A: Array + 'static>(
    records: &[Value],
    make: impl Fn(Vec<&str>) -> A,
) -> Vec<(&'static str, ArrayRef)> {
    let column = |name: &'static str| {
        let texts = records.iter().map(|record| text(record, name)).collect();
        (name, Arc::new(make(texts)) as ArrayRef)
    };
    COLUMNS.map(column).to_vec()
}

fn plain(texts: Vec<&str>) -> StringArray {
    StringArray::from_iter_values(texts)
}

/// A Parquet column of messages.
fn messages(records: &[Value]) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("content", DataType::Utf8, true),
        Field::new("role", DataType::Utf8, true),
    ]);
    let message = StructBuilder::from_fields(fields, 0);
    let mut lists = ListBuilder::new(message);
    for record in records {
        for (role, text) in said(record) {
            let message = lists.values();
            let mut put = |at, text: &str| {
                let field: &mut StringBuilder = message.field_builder(at).unwrap();
                field.append_value(text);
            };
            put(0, &text);
            put(1, role);
            message.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_in_every_form_are_the_same_data_set_and_the_form_is_told() {
    let system = System::start().await;
    let records = records();
    let digest = system.prepare(&lines(&records), json!({})).await;
    assert_eq!(system.manifest(&digest).await.accepted, 130);
    let openai = chats(
        &records,
        "messages",
        ["role", "content"],
        ["system", "user", "assistant"],
    );
    let sharegpt = chats(
        &records,
        "conversations",
        ["from", "value"],
        ["system", "human", "gpt"],
    );
    let array = serde_json::to_vec(&sharegpt).unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let mut chat_table = vec![("messages", messages(&records))];
    chat_table.extend(table(&records, plain).split_off(3));
    let mut forms: Vec<(&str, Vec<u8>)> = vec![
        ("alpaca (JSON Lines)", lines(&records)),
        ("alpaca (CSV)", separated(&records, ",", "\r\n")),
        ("alpaca (CSV)", separated(&records, ";", "\n")),
        ("alpaca (TSV)", separated(&records, "\t", "\n")),
        (
            "Dolly (JSON Lines)",
            lines(&renamed(&records, ["instruction", "context", "response"])),
        ),
        (
            "prompt and completion (JSON Lines)",
            lines(&renamed(&records, ["prompt", "input", "completion"])),
        ),
        ("OpenAI messages (JSON Lines)", lines(&openai)),
        ("ShareGPT (JSON Lines)", lines(&sharegpt)),
        ("ShareGPT (JSON array)", array),
        ("OpenAI messages (Parquet)", parquet(chat_table, zstd)),
        (
            "alpaca (Parquet)",
            parquet(
                table(&records, |texts| StringViewArray::from_iter_values(texts)),
                zstd,
            ),
        ),
        (
            "alpaca (Parquet)",
            parquet(
                table(&records, |texts| LargeStringArray::from_iter_values(texts)),
                zstd,
            ),
        ),
        (
            "alpaca (Parquet)",
            parquet(
                table(&records, |texts| {
                    texts.into_iter().collect::<DictionaryArray<Int32Type>>()
                }),
                zstd,
            ),
        ),
    ];
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        forms.push((
            "alpaca (Parquet)",
            parquet(table(&records, plain), compression),
        ));
    }
    for (at, (form, bytes)) in forms.into_iter().enumerate() {
        let name = format!("form-{at}");
        let found = system.prepare(&bytes, json!({"name": name})).await;
        assert_eq!(found, digest, "{form} {at}");
        let asked = GetDatasetRequest { dataset: name };
        let dataset = system.client().await.get_dataset(asked).await.unwrap();
        assert_eq!(dataset.into_inner().dataset.unwrap().read_as, form, "{at}");
    }
    // Said instead of detected.
    let said = json!({"records": {"format": "sharegpt"}});
    assert_eq!(system.prepare(&lines(&sharegpt), said).await, digest);
    let said = json!({"records": {"format": "tsv"}});
    assert_eq!(
        system.prepare(&separated(&records, "\t", "\n"), said).await,
        digest
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_with_its_place_and_the_way_on() {
    let system = System::start().await;
    let turn = |role: &str| json!({"role": role, "content": "x"});
    let pair = json!({"messages": [turn("user"), turn("assistant")]});
    let twice = json!({"messages": [
        turn("user"), turn("assistant"), turn("user"), turn("assistant"),
    ]});
    let alpaca = json!({"instruction": "q", "output": "a"});
    let text = |text: &str| text.as_bytes().to_vec();
    let table: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "several turns",
            lines(&[pair.clone(), twice]),
            &["line 2: ", "several turns", "record for each"],
        ),
        (
            "mixed",
            lines(&[alpaca, pair]),
            &["line 2: ", "OpenAI messages", "alpaca", "split the file"],
        ),
        (
            "another form",
            text("{\"text\": \"t\"}\n"),
            &[
                "the record has text",
                "--column",
                "Forms that are read",
                "ShareGPT (conversations)",
            ],
        ),
        (
            "one object",
            text("{\"data\": [{\"instruction\": \"q\"}]}\n"),
            &["jq .data"],
        ),
        (
            "by columns",
            text("{\"instruction\": {\"0\": \"q\"}, \"output\": {\"0\": \"a\"}}"),
            &["pandas", "orient=\"records\""],
        ),
        (
            "over lines",
            text("{\n \"instruction\": \"q\"\n}\n"),
            &["several lines", "jq -c"],
        ),
        (
            "other columns",
            text("question,answer\nq,a\n"),
            &[
                "its columns are question, answer",
                "--column instruction=NAME",
                "Forms that are",
            ],
        ),
        (
            "open quote",
            text("instruction,output\nq,\"a\n"),
            &["line 2", "quote"],
        ),
        (
            "two names",
            text("instruction,output,output\nq,a,b\n"),
            &["\"output\" twice"],
        ),
        (
            "Shift_JIS",
            b"instruction,output\n\x96\xe2\x82\xa2,a\n".to_vec(),
            &["not UTF-8", "SHIFT_JIS"],
        ),
    ];
    for (what, bytes, says) in table {
        let upload = system.upload(&bytes).await;
        let job = system.run(system.request(&upload, json!({}))).await;
        assert_eq!(job.state(), JobState::Failed, "{what}");
        let error = job.error.unwrap();
        assert_eq!(error.code, "INVALID_ARGUMENT", "{what}");
        for says in says {
            assert!(error.message.contains(says), "{what}: {}", error.message);
        }
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_does_not_fit_its_header_is_rejected_alone() {
    let system = System::start().await;
    let long = "x".repeat(3 << 20);
    let csv =
        format!("instruction,output\nq1,a1\nq2\n\nq3,a,b\nq4,{long}\n\"q5\n\",a5\n,a6\nq7,a7");
    let digest = system.prepare(csv.as_bytes(), json!({})).await;
    let manifest = system.manifest(&digest).await;
    assert_eq!((manifest.accepted, manifest.rejected), (3, 4));
    let rejects = system.rejects(&digest).await;
    let told = rejects
        .iter()
        .map(|line| (line["line"].as_u64().unwrap(), &line["reason"]));
    let wanted = [
        (3, "1 cells, and the header 2"),
        (5, "3 cells, and the header 2"),
        (6, "longer than"),
        (9, "empty"),
    ];
    for ((line, reason), (place, says)) in told.zip(wanted) {
        assert_eq!(line, place, "{reason}");
        assert!(reason.as_str().unwrap().contains(says), "{reason}");
    }
    system.stop().await;
}
