//! Encoding and decoding against golden ids of SentencePiece's C++ library, and against another
//! implementation on random text.

use proptest::prelude::*;
use sentencepiece_rs::SentencePieceProcessor;
use togi_tokens::{Tokenizer, prompt};

use crate::fixtures::{MODELS, bytes, tokenizer};
use crate::reference::Reference;

/// Decodes one by one.
fn decode_one_by_one(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = tokenizer.decoder();
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}

fn check_decoding(tokenizer: &Tokenizer, ids: &[u32], expected: &str) {
    assert_eq!(tokenizer.decode(ids), expected, "{ids:?}");
    let expected = prompt::unescape_newlines(expected);
    assert_eq!(decode_one_by_one(tokenizer, ids), expected, "{ids:?}");
}

/// Checks a model's golden texts, and returns their number.
fn check_golden(name: &str) -> usize {
    let tokenizer = tokenizer(name);
    let golden = String::from_utf8(bytes(&format!("{name}.golden.jsonl"))).unwrap();
    for line in golden.lines() {
        type Line = (String, Vec<u32>, String, Vec<u32>, String);
        let (text, ids, decoded, any_ids, any_decoded): Line = serde_json::from_str(line).unwrap();
        assert_eq!(tokenizer.encode(&text), ids, "{name}: {text:?}");
        check_decoding(&tokenizer, &ids, &decoded);
        check_decoding(&tokenizer, &any_ids, &any_decoded);
    }
    golden.lines().count()
}

#[test]
fn ids_and_texts_are_the_original_librarys() {
    for name in MODELS {
        assert_eq!(check_golden(name), 182, "{name}");
    }
}

#[test]
fn user_defined_pieces_and_ties_are_decided_as_the_original_library_does() {
    assert_eq!(check_golden("rivals"), 80);
}

#[test]
fn random_strings_have_the_original_librarys_ids_and_texts() {
    for name in MODELS {
        let reference = Reference::of(name).expect("each of the tests' models has references");
        reference.check_strings(&tokenizer(name));
    }
}

/// Text that is likely to touch a rule, a piece, or an edge of a piece.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ぁ-んァ-ンｦ-ﾟ]{1,6}",
        2 => "[研刃石時計本図書館京都、。「」]{1,5}",
        2 => "[a-zA-Z0-9 <>/,.:]{1,8}",
        1 => "[ \t\r\n\u{3000}\u{a0}\u{2581}]{1,3}",
        1 => "[\u{0}-\u{1f}\u{7f}-\u{a0}\u{200b}-\u{200f}\u{feff}\u{fffd}]{1,3}",
        1 => "[\u{300}-\u{305}\u{3099}\u{309a}\u{ff9e}\u{ff9f}]{1,2}",
        1 => "[😀-😆👩👧\u{200d}𠮷]{1,4}",
        1 => prop::sample::select(vec!["<NL>", "問:", "a b", "</s>", "<0xE3>", "[PAD]", "研ぎ", "が"])
            .prop_map(str::to_owned),
        1 => "\\PC{1,4}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn another_implementation_agrees(texts in prop::collection::vec(text(), 4)) {
        for name in MODELS {
            let tokenizer = tokenizer(name);
            let oracle =
                SentencePieceProcessor::from_serialized_model(&bytes(&format!("{name}.model"))).unwrap();
            for text in &texts {
                let ids = tokenizer.encode(text);
                let expected = oracle.encode_to_ids(text).unwrap();
                let as_oracle: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
                prop_assert_eq!(&as_oracle, &expected, "{}: {:?}", name, text);
                check_decoding(&tokenizer, &ids, &oracle.decode_ids(&expected).unwrap());
                prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
            }
        }
    }

    #[test]
    fn ends_grow_to_the_texts_end(text in text()) {
        for name in MODELS {
            let tokenizer = tokenizer(name);
            let (mut ids, mut ends) = (Vec::new(), Vec::new());
            tokenizer.encode_with_ends(&text, &mut Default::default(), &mut ids, &mut ends);
            prop_assert_eq!(&ids, &tokenizer.encode(&text));
            prop_assert_eq!(ids.len(), ends.len());
            prop_assert!(ends.is_sorted());
            prop_assert!(ends.iter().all(|end| text.is_char_boundary(*end as usize)));
            if name == "plain" && !text.is_empty() {
                prop_assert_eq!(ends.last().map(|end| *end as usize), Some(text.len()));
            }
        }
    }

    #[test]
    fn a_damaged_model_never_panics(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        for name in ["symbols", "prefix"] {
            let mut model = bytes(&format!("{name}.model"));
            let at = at.index(model.len());
            model[at] = byte;
            for model in [&model[..], &model[..cut.index(model.len())]] {
                if let Ok(tokenizer) = Tokenizer::from_bytes(model) {
                    tokenizer.decode(&tokenizer.encode("研ぎ石 が<NL>\0ａ"));
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(file in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Tokenizer::from_bytes(&file).is_err());
    }
}

#[test]
fn what_is_no_unigram_model_is_refused_by_its_reason() {
    let reason = |file: &[u8]| Tokenizer::from_bytes(file).unwrap_err().to_string();
    assert!(
        reason(&bytes("bpe.model")).contains("BPE"),
        "{}",
        reason(&bytes("bpe.model"))
    );
    assert!(reason(b"").contains("0 pieces"), "{}", reason(b""));
    assert!(reason(b"{\"model\": {}}").contains("no model file"));
    assert!(reason(b"version https://git-lfs.github.com/spec/v1\n").contains("sentencepiece"));
}

#[test]
fn special_ids_come_from_the_model() {
    let rinna = tokenizer("plain");
    assert_eq!(
        (rinna.pad(), rinna.unk(), rinna.bos(), rinna.eos()),
        (Some(0), Some(1), Some(2), Some(3))
    );
    assert_eq!(
        (rinna.piece(3), rinna.piece(0), rinna.piece(u32::MAX)),
        ("</s>", "[PAD]", "")
    );
    assert!(rinna.is_control(3) && !rinna.is_control(1));
    let other = tokenizer("prefix");
    assert_eq!(
        (other.pad(), other.unk(), other.bos(), other.eos()),
        (None, Some(0), Some(1), Some(2))
    );
    assert_eq!(other.digest().len(), 64);
    assert_ne!(other.digest(), rinna.digest());
}

#[test]
fn control_pieces_in_text_are_ordinary_text() {
    for name in MODELS {
        let tokenizer = tokenizer(name);
        let ids = tokenizer.encode("あ</s>い<s>[PAD]<0xE3>");
        assert!(
            ids.iter().all(|id| !tokenizer.is_control(*id)),
            "{name}: {ids:?}"
        );
    }
}

#[test]
fn a_long_text_of_unknown_characters_is_one_unknown_piece() {
    let tokenizer = tokenizer("prefix");
    let ids = tokenizer.encode(&"😀".repeat(10_000));
    assert_eq!(
        ids.iter()
            .filter(|id| Some(**id) == tokenizer.unk())
            .count(),
        1
    );
}
