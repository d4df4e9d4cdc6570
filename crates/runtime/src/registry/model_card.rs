//! The model card's sample prompts: who publishes an adapter writes them, who serves it measures
//! with them. They stand where model cards have them, as `widget` in the front matter of the
//! README.md, one quoted text a line.

/// The card's file name in an adapter's folder.
pub const CARD_FILE: &str = "README.md";

const WIDGET: &str = "widget:";
const TEXT: &str = "- text: ";

/// Returns the lines of the front matter that hold the samples.
#[must_use]
pub fn widget(samples: &[String]) -> String {
    let quoted = |sample: &String| {
        // A JSON string is a quoted string of YAML too.
        let text = serde_json::Value::from(sample.as_str());
        format!("{TEXT}{text}\n")
    };
    let lines: String = samples.iter().map(quoted).collect();
    format!("{WIDGET}\n{lines}")
}

/// Returns the samples of a card; none if it has none, or has them in another form than [`widget`]
/// gives them.
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
