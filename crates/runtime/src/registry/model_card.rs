//! The parts of a model card that are read or replaced after it was written. The sample prompts,
//! with which a server measures, are the `widget` list in the front matter of README.md, one quoted
//! string per line. The lines that name the base are replaced when an adapter leaves the store.

/// The card's file name in the adapter's folder.
pub const CARD_FILE: &str = "README.md";

const WIDGET: &str = "widget:";
const TEXT: &str = "- text: ";

/// The line of a card that opens an adapter together with its base, up to the adapter's place.
pub const OPENING: &str = "model = AutoPeftModelForCausalLM.from_pretrained(";

/// The front matter's line with the base.
#[must_use]
pub fn base_line(base: &str) -> String {
    format!("base_model: {base:?}")
}

/// The front matter's tag with the base.
#[must_use]
pub fn tag_line(base: &str) -> String {
    format!("- \"base_model:adapter:{base}\"")
}

/// The title.
#[must_use]
pub fn title_line(base: &str) -> String {
    format!("# A LoRA adapter for {base}")
}

/// The lines that open an adapter over a base that is named apart.
#[must_use]
pub fn snippet(base: &str) -> String {
    format!(
        "from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM\n\
         \n\
         model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base:?}), \"PATH_OF_THIS_FOLDER\")\n"
    )
}

/// The lines that open an adapter whose configuration names a place of its base.
#[must_use]
pub fn opening(adapter: &str) -> String {
    format!("from peft import AutoPeftModelForCausalLM\n\n{OPENING}{adapter:?})\n")
}

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
