//! The SentencePiece `.model` file: the fields of its protobuf that are used here.

use prost::Message;

/// The whole file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub(crate) pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    pub(crate) trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) normalizer: Option<NormalizerSpec>,
    #[prost(message, optional, tag = "5")]
    pub(crate) denormalizer: Option<NormalizerSpec>,
}

/// One entry of the vocabulary; its index is its id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PieceProto {
    #[prost(string, tag = "1")]
    pub(crate) piece: String,
    #[prost(float, tag = "2")]
    pub(crate) score: f32,
    #[prost(enumeration = "Kind", optional, tag = "3")]
    pub(crate) kind: Option<i32>,
}

/// The use of a vocabulary entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// How the model was trained. An absent text means the format's default.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    pub(crate) model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    pub(crate) treat_whitespace_as_suffix: bool,
    #[prost(bool, tag = "35")]
    pub(crate) byte_fallback: bool,
    #[prost(string, optional, tag = "44")]
    pub(crate) unk_surface: Option<String>,
    #[prost(string, optional, tag = "46")]
    pub(crate) bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    pub(crate) eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pub(crate) pad_piece: Option<String>,
}

/// The value of `TrainerSpec::model_type` for a unigram model, and its default.
pub(crate) const UNIGRAM: i32 = 1;

/// How text is normalized. All three switches are on unless the file sets them.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NormalizerSpec {
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(crate) remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) escape_whitespaces: Option<bool>,
}
