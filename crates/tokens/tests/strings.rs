//! Random strings, the same as those of `tests/reference/tokens.py`: a string is a function of its
//! number.

use std::path::PathBuf;

/// The number of strings that have references.
pub(crate) const COUNT: u64 = 10_000;
/// One string in this many is long.
const LONG_EVERY: u64 = 2_500;
const LONG_BYTES: usize = 100_000;

/// The source of strings: alphabets of words and ranges of characters.
pub(crate) struct Strings {
    alphabets: Vec<Alphabet>,
}

struct Alphabet(Vec<Entry>);

enum Entry {
    Word(String),
    /// First and last character.
    Range(u32, u32),
}

impl Strings {
    /// Reads the alphabets that both generators share.
    pub(crate) fn new() -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/reference/tokens.alphabets.json");
        let json = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let alphabets: Vec<Vec<String>> = serde_json::from_slice(&json).unwrap();
        let read = |entries: Vec<String>| Alphabet(entries.into_iter().map(Entry::new).collect());
        Self {
            alphabets: alphabets.into_iter().map(read).collect(),
        }
    }

    /// Returns all strings in their order.
    pub(crate) fn all(&self) -> Vec<String> {
        (0..COUNT).map(|number| self.get(number)).collect()
    }

    /// Returns a string of up to eight parts, or a long one of at least [`LONG_BYTES`] bytes, in
    /// which every other part is one run.
    fn get(&self, number: u64) -> String {
        let mut draw = SplitMix64(number);
        let mut text = String::new();
        if !number.is_multiple_of(LONG_EVERY) {
            (0..draw.below(9)).for_each(|_| self.push_part(&mut draw, &mut text));
        } else if !number.is_multiple_of(2 * LONG_EVERY) {
            let word = draw.pick(&self.alphabets).word(&mut draw);
            text = word.repeat(LONG_BYTES.div_ceil(word.len()));
        } else {
            while text.len() < LONG_BYTES {
                self.push_part(&mut draw, &mut text);
            }
        }
        text
    }

    /// Appends up to 12 entries of one alphabet, or in one case of sixteen up to 200 times the
    /// same.
    fn push_part(&self, draw: &mut SplitMix64, text: &mut String) {
        let alphabet = draw.pick(&self.alphabets);
        if draw.below(16) == 0 {
            let word = alphabet.word(draw);
            let times = 1 + draw.below(200) as usize;
            text.push_str(&word.repeat(times));
        } else {
            (0..1 + draw.below(12)).for_each(|_| text.push_str(&alphabet.word(draw)));
        }
    }
}

impl Alphabet {
    fn word(&self, draw: &mut SplitMix64) -> String {
        match draw.pick(&self.0) {
            Entry::Word(word) => word.clone(),
            Entry::Range(first, last) => {
                let code = first + draw.below(u64::from(last - first + 1)) as u32;
                char::from_u32(code).unwrap().to_string()
            }
        }
    }
}

impl Entry {
    fn new(text: String) -> Self {
        let ends = text
            .strip_prefix("U+")
            .and_then(|rest| rest.split_once(".."));
        let Some((first, last)) = ends else {
            return Self::Word(text);
        };
        let code = |digits: &str| u32::from_str_radix(digits, 16).unwrap();
        Self::Range(code(first), code(last))
    }
}

/// The generator of random numbers: a counter and a mixing function (Steele, Lea, Flood, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
