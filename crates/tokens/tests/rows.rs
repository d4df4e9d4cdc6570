//! Records to rows: truncation, the end of sequence, and labels.

use proptest::prelude::*;
use togi_tokens::row::{IGNORED, is_validation};
use togi_tokens::{DatasetHasher, Encoder, Learn, OverLong, Record, Row, Settings, prompt};

use crate::fixtures::{MODELS, record, tokenizer};

fn row(name: &str, record: &Record, settings: Settings) -> Result<Row, togi_tokens::Reject> {
    Encoder::new(tokenizer(name), settings).unwrap().row(record)
}

fn example() -> Record {
    record(
        "研ぎ石の使い方を教えてください。",
        "包丁は三本あります。",
        "水に浸してから、刃を当てます。\n力は要りません。",
    )
}

#[test]
fn a_row_is_the_training_text_and_the_end_of_sequence() {
    for name in MODELS {
        let tokenizer = tokenizer(name);
        let row = row(name, &example(), Settings::default()).unwrap();
        let mut expected = tokenizer.encode(&prompt::training(&example()).text);
        expected.push(tokenizer.eos().unwrap());
        assert_eq!(row.input_ids, expected);
        assert!(
            row.labels
                .iter()
                .zip(&expected)
                .all(|(label, id)| *label == *id as i32)
        );
        assert_eq!(
            (row.category.as_str(), row.sample_id),
            ("open_qa", example().sample_id())
        );
    }
}

#[test]
fn a_long_row_is_cut_before_the_end_of_sequence_or_rejected() {
    let whole = row("plain", &example(), Settings::default()).unwrap();
    let max_length = whole.input_ids.len() as u32 - 3;
    let settings = Settings {
        max_length,
        ..Settings::default()
    };
    let cut = row("plain", &example(), settings.clone()).unwrap();
    assert_eq!(cut.input_ids.len(), max_length as usize);
    let (last, kept) = cut.input_ids.split_last().unwrap();
    assert_eq!(*last, tokenizer("plain").eos().unwrap());
    assert_eq!(kept, &whole.input_ids[..kept.len()]);

    let exact = Settings {
        max_length: whole.input_ids.len() as u32,
        over_long: OverLong::Reject,
        ..Settings::default()
    };
    assert_eq!(row("plain", &example(), exact).unwrap(), whole);
    let reject = Settings {
        over_long: OverLong::Reject,
        ..settings
    };
    let reject = row("plain", &example(), reject).unwrap_err();
    assert!(
        reject.reason.contains(&max_length.to_string()),
        "{}",
        reject.reason
    );
}

#[test]
fn the_real_end_of_sequence_is_learned_and_stays_last_after_truncation() {
    // Text that spells it is not the end.
    let record = record("問い</s>", "", "答え</s>は二つ</s>");
    for name in MODELS {
        let tokenizer = tokenizer(name);
        let eos = tokenizer.eos().unwrap();
        let whole = tokenizer.encode(&prompt::training(&record).text).len() + 1;
        for (learn, shortest) in [(Learn::All, 2), (Learn::Answer, whole - 1)] {
            for max_length in shortest..=whole + 1 {
                let settings = Settings {
                    max_length: max_length as u32,
                    learn,
                    ..Settings::default()
                };
                let row = row(name, &record, settings).unwrap();
                assert_eq!(row.input_ids.len(), max_length.min(whole), "{name}");
                assert_eq!(row.input_ids.last(), Some(&eos), "{name}");
                assert_eq!(row.labels.last(), Some(&eos.cast_signed()), "{name}");
                let ends = row.input_ids.iter().filter(|id| **id == eos).count();
                assert_eq!(ends, 1, "{name} at {max_length}");
            }
        }
    }
}

#[test]
fn the_answer_alone_is_learned_when_asked() {
    for name in MODELS {
        let tokenizer = tokenizer(name);
        let settings = Settings {
            learn: Learn::Answer,
            ..Settings::default()
        };
        let row = row(name, &example(), settings).unwrap();
        let first = row
            .labels
            .iter()
            .position(|label| *label != IGNORED)
            .unwrap();
        assert!(row.labels[..first].iter().all(|label| *label == IGNORED));
        let learned = row.labels[first..].iter().zip(&row.input_ids[first..]);
        assert!(learned.clone().all(|(label, id)| *label == *id as i32));
        let answer = tokenizer.decode(&row.input_ids[first..]);
        let expected = tokenizer.decode(&tokenizer.encode("水に浸してから、刃を当てます。"));
        assert!(
            answer.trim().starts_with(expected.trim()),
            "{name}: {answer:?}"
        );
    }
}

#[test]
fn an_answer_that_is_cut_off_whole_is_rejected() {
    let settings = Settings {
        max_length: 8,
        learn: Learn::Answer,
        ..Settings::default()
    };
    assert_eq!(
        row("plain", &example(), settings).unwrap_err().field,
        "output"
    );
    // If everything is learned, some ids are left to learn.
    let settings = Settings {
        max_length: 8,
        ..Settings::default()
    };
    assert_eq!(
        row("plain", &example(), settings).unwrap().input_ids.len(),
        8
    );
}

#[test]
fn the_digest_is_of_records_and_settings_in_their_order() {
    let tokenizer_a = tokenizer("plain");
    let digest = |name: &str, settings: &Settings, records: &[&str], reject: Option<&[u8]>| {
        let mut hasher = DatasetHasher::new(&tokenizer(name), settings);
        records
            .iter()
            .for_each(|text| hasher.accept(record(text, "", "答え").digest()));
        reject.into_iter().for_each(|line| hasher.reject(line));
        hasher.finish()
    };
    let settings = Settings::default();
    let base = digest("plain", &settings, &["一", "二"], None);
    assert_eq!(base, digest("plain", &settings, &["一", "二"], None));
    let answer = Settings {
        learn: Learn::Answer,
        ..settings.clone()
    };
    let others = [
        digest("plain", &settings, &["二", "一"], None),
        digest("plain", &settings, &["一"], None),
        digest("plain", &settings, &["一", "二"], Some(b"{\"line\":3}")),
        digest("prefix", &settings, &["一", "二"], None),
        digest("plain", &answer, &["一", "二"], None),
    ];
    assert!(others.iter().all(|other| *other != base));
    assert_eq!(tokenizer_a.digest(), tokenizer("plain").digest());
}

proptest! {
    #[test]
    fn every_row_fits_and_ends(text in "\\PC{1,80}", max_length in 2_u32..60, share in 0.0..1.0_f64) {
        let record = record(&format!("問{text}"), &text, &format!("答{text}"));
        for learn in [Learn::All, Learn::Answer] {
            let settings = Settings { max_length, learn, ..Settings::default() };
            let Ok(row) = row("plain", &record, settings) else {
                prop_assert_eq!(learn, Learn::Answer);
                continue;
            };
            prop_assert!(row.input_ids.len() <= max_length as usize);
            prop_assert_eq!(row.input_ids.len(), row.labels.len());
            prop_assert_eq!(row.input_ids.last().copied(), tokenizer("plain").eos());
            prop_assert!(row.labels.last().is_some_and(|label| *label != IGNORED));
        }
        let hash = record.content_hash();
        prop_assert_eq!(is_validation(hash, share), is_validation(hash, share));
    }
}
