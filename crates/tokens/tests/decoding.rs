//! Ids that arrive one by one: after each, the text is the same as that of all at once, and `<NL>`
//! is a newline however pieces split it.

use proptest::prelude::*;
use togi_tokens::{Tokenizer, prompt};

use crate::fixtures::{MODELS, tokenizer};
use crate::strings::Strings;

/// Fails unless, after each id, the returned text and the held text together are the text of the
/// ids so far. Returned text is never taken back, so that it then begins the text of every longer
/// list.
fn check_prefixes(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut decoder = tokenizer.decoder();
    let mut given = String::new();
    for at in 0..ids.len() {
        given.push_str(&decoder.push(ids[at]));
        let held = decoder.clone().finish();
        let at_once = prompt::unescape_newlines(&tokenizer.decode(&ids[..=at]));
        assert_eq!(format!("{given}{held}"), at_once, "{:?}", &ids[..=at]);
    }
}

proptest! {
    #[test]
    fn any_ids_decode_alike_at_once_and_one_by_one(ids in prop::collection::vec(0..700_u32, ..24)) {
        for name in MODELS {
            check_prefixes(&tokenizer(name), &ids);
        }
    }
}

#[test]
fn random_strings_decode_alike_at_once_and_one_by_one() {
    let strings = Strings::new().all();
    for name in MODELS {
        let tokenizer = tokenizer(name);
        for text in strings.iter().step_by(10) {
            // This is quadratic in the ids, so that only the beginning of long strings is tested.
            let mut ids = tokenizer.encode(text);
            ids.truncate(300);
            check_prefixes(&tokenizer, &ids);
        }
    }
}

/// Returns every list of ids that spells a text, with pieces or bytes for each character.
fn cuts(tokenizer: &Tokenizer, text: &str) -> Vec<Vec<u32>> {
    if text.is_empty() {
        return vec![Vec::new()];
    }
    let mut cuts = Vec::new();
    for id in 0..tokenizer.vocab_size() as u32 {
        let own = tokenizer.decode(&[id]);
        if !own.is_empty()
            && let Some(rest) = text.strip_prefix(&own)
        {
            let rests = self::cuts(tokenizer, rest);
            cuts.extend(rests.into_iter().map(|rest| [vec![id], rest].concat()));
        }
    }
    cuts
}

#[test]
fn a_newline_is_one_in_every_cut_into_pieces_and_bytes() {
    let tokenizer = tokenizer("newline");
    let newlines = cuts(&tokenizer, prompt::NEWLINE);
    // Each lone character in the eight ways to cut four characters may be a piece or a byte.
    assert_eq!(newlines.len(), 34);
    for newline in &newlines {
        let (last, before) = newline.split_last().unwrap();
        let mut decoder = tokenizer.decoder();
        assert!(before.iter().all(|id| decoder.push(*id).is_empty()));
        assert_eq!(decoder.push(*last), "\n", "{newline:?}");
        assert_eq!(decoder.finish(), "");
    }
}

#[test]
fn a_newline_in_every_cut_keeps_what_is_around_it() {
    let tokenizer = tokenizer("newline");
    let newlines = cuts(&tokenizer, prompt::NEWLINE);
    // Text, beginnings of `<NL>`, a character that is cut off, and a control id, which has no text.
    let mut around = vec![vec![], vec![1], tokenizer.encode("あ")[..2].to_vec()];
    for text in ["a", ">", "<", "<N", "<NL", "<NL>"] {
        around.extend(cuts(&tokenizer, text).into_iter().take(4));
    }
    for newline in &newlines {
        for before in &around {
            for after in &around {
                check_prefixes(&tokenizer, &[&before[..], newline, after].concat());
            }
        }
    }
}
