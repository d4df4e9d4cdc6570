//! Reads a model's file. Every claim of the file is checked here, so that encoding need not check
//! any.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;

use super::lattice::Lattice;
use super::model::{Kind, ModelProto, NormalizerSpec, PieceProto, TrainerSpec, UNIGRAM};
use super::normalizer::Normalizer;
use super::table::CharTable;
use super::trie::{Entry, Trie};
use super::vocabulary::{Piece, Role, Vocabulary};
use crate::error::{Error, Result};

/// SentencePiece's own limit on a piece.
const LONGEST_PIECE: usize = 8000;
/// Far larger than any real model.
const LARGEST_FILE: usize = 256 << 20;
const MOST_PIECES: usize = 1 << 24;
/// Scores are logarithms of probabilities. The limit keeps their sums finite.
const LARGEST_SCORE: f32 = 1e9;
/// The score of an unknown character is this much below the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// A checked model, in the form in which texts are encoded and decoded.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) normalizer: Normalizer,
    pub(super) lattice: Lattice,
    /// Ids of the 256 byte pieces; empty without byte fallback.
    pub(super) bytes: Vec<u32>,
    pub(super) vocabulary: Arc<Vocabulary>,
}

impl Model {
    pub(super) fn read(file: &[u8]) -> Result<Self> {
        if file.len() > LARGEST_FILE {
            return Err(Error::tokenizer(format!(
                "{} bytes are more than any model has",
                file.len()
            )));
        }
        let proto = ModelProto::decode(file)
            .map_err(|error| Error::tokenizer(format!("it is no model file ({error})")))?;
        let trainer = proto.trainer.unwrap_or_default();
        let normalizer = proto.normalizer.unwrap_or_default();
        check_kind(&trainer, proto.denormalizer.as_ref())?;
        let kinds = check_pieces(&proto.pieces, trainer.byte_fallback)?;
        let pieces: Vec<(&PieceProto, Kind)> = proto.pieces.iter().zip(kinds).collect();

        let unknown = ids_of(&pieces, Kind::Unknown);
        let [unk] = unknown[..] else {
            return Err(Error::tokenizer(format!(
                "it has {} unknown pieces, not one",
                unknown.len()
            )));
        };
        let (lattice, codes) = lattice(&pieces, unk)?;
        let user_defined: Vec<&str> = of_kind(&pieces, Kind::UserDefined)
            .map(|(_, piece)| piece.piece.as_str())
            .collect();
        Ok(Self {
            normalizer: Normalizer::new(&normalizer, &trainer, &user_defined, codes)?,
            lattice,
            bytes: if trainer.byte_fallback {
                byte_ids(&pieces)?
            } else {
                Vec::new()
            },
            vocabulary: Arc::new(vocabulary(&pieces, unk, &trainer, &normalizer)),
        })
    }
}

fn check_kind(trainer: &TrainerSpec, denormalizer: Option<&NormalizerSpec>) -> Result<()> {
    let named = |kind: i32| match kind {
        2 => "a BPE model".to_owned(),
        3 => "a word model".to_owned(),
        4 => "a character model".to_owned(),
        other => format!("of the unknown type {other}"),
    };
    match trainer.model_type.unwrap_or(UNIGRAM) {
        UNIGRAM => {}
        other => return Err(Error::tokenizer(format!("it is {}", named(other)))),
    }
    if denormalizer.is_some_and(|spec| !spec.charsmap.is_empty()) {
        return Err(Error::tokenizer(
            "it has denormalization rules, which are not followed here",
        ));
    }
    Ok(())
}

/// Returns the kind of each piece.
fn check_pieces(pieces: &[PieceProto], byte_fallback: bool) -> Result<Vec<Kind>> {
    if pieces.is_empty() || pieces.len() > MOST_PIECES {
        return Err(Error::tokenizer(format!("it has {} pieces", pieces.len())));
    }
    let (mut texts, mut reserved) = (HashSet::new(), HashSet::new());
    let mut kinds = Vec::with_capacity(pieces.len());
    for (id, PieceProto { piece, score, kind }) in pieces.iter().enumerate() {
        let refuse = |reason: &str| Err(Error::tokenizer(format!("piece {id} {reason}")));
        let Ok(kind) = Kind::try_from(kind.unwrap_or(Kind::Normal as i32)) else {
            return refuse("is of an unknown kind");
        };
        if piece.is_empty() || piece.len() >= LONGEST_PIECE || piece.contains('\0') {
            return refuse("is empty, too long, or has a NUL");
        }
        if score.is_nan() || score.abs() > LARGEST_SCORE {
            return refuse("has a score that is no logarithm of a probability");
        }
        let of_text = matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let known = if of_text { &mut texts } else { &mut reserved };
        if !known.insert(piece.as_str()) {
            return refuse("is there twice");
        }
        if kind == Kind::Byte && (!byte_fallback || byte_of(piece).is_none()) {
            return refuse("is a byte that the model has no use for");
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn of_kind<'a>(
    pieces: &'a [(&'a PieceProto, Kind)],
    kind: Kind,
) -> impl Iterator<Item = (u32, &'a PieceProto)> {
    let numbered = pieces.iter().enumerate();
    numbered
        .filter(move |(_, (_, own))| *own == kind)
        .map(|(id, (piece, _))| (id as u32, *piece))
}

fn ids_of(pieces: &[(&PieceProto, Kind)], kind: Kind) -> Vec<u32> {
    of_kind(pieces, kind).map(|(id, _)| id).collect()
}

/// Builds the lattice of the pieces that text can become. Unused pieces are left out.
fn lattice(pieces: &[(&PieceProto, Kind)], unk: u32) -> Result<(Lattice, CharTable)> {
    let normal = || of_kind(pieces, Kind::Normal);
    let entry = |value, piece, score| Entry {
        text: piece,
        value,
        score,
    };
    let user_defined = of_kind(pieces, Kind::UserDefined);
    let user_defined =
        user_defined.map(|(id, piece)| entry(id, &piece.piece, user_defined_score(&piece.piece)));
    let entries = normal().map(|(id, piece)| entry(id, &piece.piece, piece.score));
    let entries: Vec<Entry<'_>> = entries.chain(user_defined).collect();
    if entries.is_empty() {
        return Err(Error::tokenizer("it has no piece that text could become"));
    }
    let (trie, codes) = Trie::build(&entries);
    let lowest = normal()
        .map(|(_, piece)| piece.score)
        .fold(f32::MAX, f32::min);
    let unk_score = lowest - UNKNOWN_PENALTY;
    Ok((
        Lattice {
            trie,
            unk,
            unk_score,
        },
        codes,
    ))
}

/// The score that SentencePiece since 0.2.2 gives a user-defined piece, instead of the file's.
/// Longer pieces win over shorter ones, and all of them over any logarithm of a probability.
pub(super) fn user_defined_score(piece: &str) -> f32 {
    (0.1 * (piece.len() - 1) as f64) as f32
}

/// The byte that a piece such as `<0xE3>` stands for.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |digit: u8| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit);
    if digits.len() != 2 || !digits.bytes().all(upper) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn byte_ids(pieces: &[(&PieceProto, Kind)]) -> Result<Vec<u32>> {
    let mut ids = vec![None; 256];
    for (id, piece) in of_kind(pieces, Kind::Byte) {
        if let Some(byte) = byte_of(&piece.piece) {
            ids[usize::from(byte)] = Some(id);
        }
    }
    let ids: Option<Vec<u32>> = ids.into_iter().collect();
    ids.ok_or_else(|| Error::tokenizer("it has byte fallback, but not all 256 bytes"))
}

fn vocabulary(
    pieces: &[(&PieceProto, Kind)],
    unk: u32,
    trainer: &TrainerSpec,
    normalizer: &NormalizerSpec,
) -> Vocabulary {
    let role = |piece: &PieceProto, kind: Kind| match kind {
        Kind::Control => Role::Control,
        Kind::Unknown => Role::Unknown,
        Kind::Byte => byte_of(&piece.piece).map_or(Role::Control, Role::Byte),
        Kind::Normal | Kind::UserDefined | Kind::Unused => Role::Text,
    };
    let control = |name: &Option<String>, default: &str| {
        let name = name.as_deref().unwrap_or(default);
        of_kind(pieces, Kind::Control)
            .find(|(_, piece)| piece.piece == name)
            .map(|(id, _)| id)
    };
    let dummy_prefix = normalizer.add_dummy_prefix.unwrap_or(true);
    let remove_extra = normalizer.remove_extra_whitespaces.unwrap_or(true);
    let own = pieces.iter().map(|(piece, kind)| Piece {
        text: piece.piece.clone(),
        role: role(piece, *kind),
    });
    Vocabulary {
        pieces: own.collect(),
        unk_surface: trainer
            .unk_surface
            .clone()
            .unwrap_or_else(|| " \u{2047} ".to_owned()),
        strip_space: dummy_prefix || remove_extra,
        strip_all_spaces: remove_extra,
        user_defined: ids_of(pieces, Kind::UserDefined),
        unk,
        bos: control(&trainer.bos_piece, "<s>"),
        eos: control(&trainer.eos_piece, "</s>"),
        pad: control(&trainer.pad_piece, "<pad>"),
    }
}
