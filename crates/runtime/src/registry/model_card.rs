//! The model card's sample prompts. An adapter's publisher writes them, and its server uses them
//! for measurements. They are the `widget` list in the front matter of README.md, one quoted string
//! per line.

/// The card's file name in the adapter's folder.
pub const CARD_FILE: &str = "README.md";

const WIDGET: &str = "widget:";
const TEXT: &str = "- text: ";

/// Returns the front matter's lines with the samples.
#[must_use]
pub fn widget(samples: &[String]) -> String {
    let quoted = |sample: &String| {
        // A JSON string is also a quoted YAML string.
        let text = serde_json::Value::from(sample.as_str());
        format!("{TEXT}{text}\n")
    };
    let lines: String = samples.iter().map(quoted).collect();
    format!("{WIDGET}\n{lines}")
}

/// Returns a card's samples; empty if it has none in the form that [`widget`] writes.
#[must_use]
pub fn samples(card: &str) -> Vec<String> {
    let front = card.strip_prefix("---\n").unwrap_or_default();
    let mut lines = front.lines().take_while(|line| *line != "---");
    if !lines.any(|line| line == WIDGET) {
        return Vec::new();
    }
    lines
        .map_while(|line| serde_json::from_str(line.strip_prefix(TEXT)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_back_from_the_card() {
        let written = ["### 指示:<NL>\"研ぐ\"とは?", "a: b\n# c"].map(str::to_owned);
        let card = format!(
            "---\nlanguage: ja\n{}tags:\n- lora\n---\n# A card\n",
            widget(&written)
        );
        assert_eq!(samples(&card), written);
    }

    #[test]
    fn a_card_without_samples_has_none() {
        for card in [
            "",
            "# A card\n",
            "---\nlanguage: ja\n---\nwidget:\n- text: \"in the text\"\n",
            "---\nwidget:\n- src: a.png\n---\n",
        ] {
            assert!(samples(card).is_empty(), "{card}");
        }
    }
}
