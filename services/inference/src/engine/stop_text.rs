//! Finds the first stop text in a text that arrives in pieces, and holds back an end of the text
//! that may become one. It knows nothing of tokens: its input and output are whole UTF-8 text.

/// Looks for stop texts.
#[derive(Debug, Clone)]
pub(crate) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

/// The text that can be shown after a piece.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Text that is certain to be part of the answer.
    pub(crate) text: String,
    /// Whether a stop text was found. The answer has then ended before it.
    pub(crate) stopped: bool,
}

impl StopTexts {
    /// Looks for any of `texts`; an empty one is never found.
    pub(crate) fn new(texts: Vec<String>) -> Self {
        let texts = texts.into_iter().filter(|text| !text.is_empty()).collect();
        Self {
            texts,
            held: String::new(),
        }
    }

    /// Takes the next piece of the answer; returns the text that can be shown now.
    pub(crate) fn push(&mut self, piece: &str) -> Scan {
        if self.texts.is_empty() {
            return Scan {
                text: piece.to_owned(),
                stopped: false,
            };
        }
        self.held.push_str(piece);
        let positions = self.texts.iter().filter_map(|text| self.held.find(text));
        if let Some(first) = positions.min() {
            self.held.truncate(first);
            return Scan {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let certain = self.held.len() - self.possible_start();
        let rest = self.held.split_off(certain);
        Scan {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// Returns the text held back: the answer ended before it became a stop text.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest end of the held text that begins a stop text.
    fn possible_start(&self) -> usize {
        self.texts
            .iter()
            .map(|text| overlap(&self.held, text))
            .max()
            .unwrap_or(0)
    }
}

/// Length in bytes of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .filter(|&length| stop.is_char_boundary(length))
        .find(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut texts = StopTexts::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let scan = texts.push(piece);
            shown.push(scan.text);
            if scan.stopped {
                return (shown, true);
            }
        }
        shown.push(texts.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_text_over_several_pieces_is_cut_out() {
        let (shown, stopped) = run(&["###"], &["はい#", "#", "#後"]);
        assert!(stopped);
        assert_eq!(shown, ["はい", "", ""]);
    }

    #[test]
    fn what_may_become_a_stop_text_is_held_until_it_cannot() {
        let (shown, stopped) = run(&["終わり"], &["終", "わ", "る", "終わ"]);
        assert!(!stopped);
        assert_eq!(shown, ["", "", "終わる", "", "終わ"]);
    }

    #[test]
    fn the_first_of_several_wins_and_a_false_start_is_seen_through() {
        let (shown, stopped) = run(&["aab", "c"], &["xa", "aa", "bc"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "xa");
    }

    #[test]
    fn characters_that_share_first_bytes_are_not_cut() {
        // あ and い share two bytes of three.
        let (shown, stopped) = run(&["い"], &["あ", "う"]);
        assert!(!stopped);
        assert_eq!(shown.concat(), "あう");
    }

    #[test]
    fn with_no_stop_text_nothing_is_held() {
        assert_eq!(run(&[], &["a", "b"]).0, ["a", "b", ""]);
    }

    #[test]
    fn pieces_do_not_change_the_answer() {
        let text = "東京は日本の首都です。\n### 次";
        for stop in ["###", "\n#", "です。", "日本の", "無い", "次"] {
            let whole = text.find(stop).map_or(text, |at| &text[..at]);
            for size in 1..6 {
                let chars: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = chars.chunks(size).map(|c| c.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(run(&[stop], &pieces).0.concat(), whole, "{stop} by {size}");
            }
        }
    }
}
