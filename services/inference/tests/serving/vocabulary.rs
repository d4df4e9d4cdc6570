//! A small SentencePiece model: bytes, `<NL>` as one piece and in parts, and kana. Ids are indices
//! into [`pieces`].

use prost::Message;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// End of sequence.
pub const EOS: u32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    vocab_size: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// All pieces with their kinds, by id.
fn pieces() -> Vec<(String, i32)> {
    let mut pieces = vec![
        ("<unk>".to_owned(), UNKNOWN),
        ("<s>".to_owned(), CONTROL),
        ("</s>".to_owned(), CONTROL),
    ];
    pieces.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    pieces.push(("<NL>".to_owned(), USER_DEFINED));
    pieces.push(("NL".to_owned(), NORMAL));
    let singles =
        "<>\u{2581}#:指示入力回答問。0123456789あいうえおかきくけこさしすせそたちつてとなにぬねの";
    pieces.extend(singles.chars().map(|c| (c.to_string(), NORMAL)));
    pieces
}

/// Number of pieces.
pub fn size() -> usize {
    pieces().len()
}

/// A piece's id.
pub fn id(piece: &str) -> u32 {
    let place = pieces().iter().position(|(text, _)| text == piece);
    u32::try_from(place.expect("the piece is in the vocabulary")).unwrap()
}

/// The model's file.
pub fn model() -> Vec<u8> {
    let all = pieces();
    let piece = |(text, kind): (String, i32)| Piece {
        piece: Some(text),
        score: Some(if kind == NORMAL { -1.0 } else { 0.0 }),
        kind: Some(kind),
    };
    let model = Model {
        trainer: Some(Trainer {
            model_type: Some(1),
            vocab_size: i32::try_from(all.len()).ok(),
            byte_fallback: Some(true),
            unk_id: Some(0),
            bos_id: Some(1),
            eos_id: Some(2),
            pad_id: Some(-1),
        }),
        normalizer: Some(Normalizer {
            name: Some("identity".into()),
            precompiled_charsmap: None,
            add_dummy_prefix: Some(false),
            remove_extra_whitespaces: Some(false),
            escape_whitespaces: Some(true),
        }),
        pieces: all.into_iter().map(piece).collect(),
    };
    model.encode_to_vec()
}
