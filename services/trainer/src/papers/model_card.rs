//! The model card: a README.md with the front matter that PEFT writes. A pure function of what the
//! generation is made of, so that two jobs that make the same generation write the same card.

use togi_common::Generation;
use togi_runtime::registry::adapter_manifest::Identity;
use togi_runtime::registry::model_card::{base_line, snippet, tag_line, title_line, widget};
use togi_tokens::prompt;

use crate::recipe::Recipe;

/// Instruction and input of the sample prompts that every card shows. A replica that serves the
/// adapter over another representation of its base measures with them, so they are the same for all
/// adapters: short and long, with input and without.
const SAMPLES: [(&str, &str); 5] = [
    ("包丁を研ぐ前に準備するものを教えてください。", ""),
    ("三つの数 7、12、5 を小さい順に並べてください。", ""),
    (
        "次の文を丁寧な言い方に直してください。",
        "その荷物、明日までに送っといて。",
    ),
    (
        "次の文章を一文にまとめてください。",
        "この店は朝六時に開きます。焼きたてのパンが並ぶのは七時ごろで、昼前にはほとんど売り切れます。\n夕方は予約した人だけが受け取れます。",
    ),
    (
        "雨の日に部屋の中でできる遊びを一つ挙げて、その理由も書いてください。",
        "",
    ),
];

/// Returns the card of an adapter over the base that PEFT shall load as `base_name`.
#[must_use]
pub(crate) fn card(
    base_name: &str,
    identity: &Identity,
    generation: Generation,
    recipe: &Recipe,
) -> String {
    let targets: Vec<String> = recipe
        .target_names()
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    let clipping = match recipe.max_gradient_norm {
        0.0 => "none".to_owned(),
        norm => norm.to_string(),
    };
    format!(
        "---\n\
         {}\n\
         language: ja\n\
         library_name: peft\n\
         license: other\n\
         license_name: base-and-data\n\
         pipeline_tag: text-generation\n\
         tags:\n\
         {}\n\
         - lora\n\
         - transformers\n\
         {}\
         ---\n\
         \n\
         {}\n\
         \n\
         Made by Togi. Its licence follows from those of the base and of the data that it was trained on.\n\
         \n\
         ## Use\n\
         \n\
         ```python\n\
         {}\
         ```\n\
         \n\
         The prompt is `### 指示:` instruction, `### 入力:` input (left out when empty) and `### 回答:`, with an empty line between them;\n\
         each newline is written `<NL>`.\n\
         \n\
         ## Made of\n\
         \n\
         | | |\n\
         |---|---|\n\
         | generation | `{generation}` |\n\
         | base | `{}`, held as {} |\n\
         | tokenizer | `{}` |\n\
         | prompt template | `{}` |\n\
         | data set | `{}` |\n\
         | recipe | `{}` |\n\
         \n\
         ## Training\n\
         \n\
         | | |\n\
         |---|---|\n\
         | LoRA | rank {}, alpha {}, dropout {}, on {} |\n\
         | optimizer | AdamW ({}, {}, {:e}), weight decay {} |\n\
         | learning rate | {:e}, {} warm-up steps, then linear decay |\n\
         | records in a step | {} x {} |\n\
         | epochs | {} |\n\
         | gradient clipping | {clipping} |\n\
         | seed | {} |\n",
        base_line(base_name),
        tag_line(base_name),
        widget(&samples()),
        title_line(base_name),
        snippet(base_name),
        identity.base,
        identity.base_precision,
        identity.tokenizer,
        identity.template,
        identity.dataset,
        identity.recipe,
        recipe.lora.rank,
        recipe.lora.alpha,
        recipe.lora.dropout,
        targets.join(", "),
        recipe.adam_beta1,
        recipe.adam_beta2,
        recipe.adam_epsilon,
        recipe.weight_decay,
        recipe.learning_rate,
        recipe.warmup_steps,
        recipe.batch_size,
        recipe.accumulation,
        recipe.epochs,
        recipe.seed,
    )
}

/// The sample prompts, as the network reads them.
fn samples() -> Vec<String> {
    SAMPLES
        .iter()
        .map(|(instruction, input)| prompt::generation(instruction, input))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_front_matter_and_names_its_parts() {
        let identity = Identity {
            base: "b0".into(),
            base_precision: "f32".into(),
            tokenizer: "t0".into(),
            template: "p0".into(),
            dataset: "d0".repeat(32).parse().unwrap(),
            recipe: "r0".into(),
        };
        let generation = "ab".repeat(32);
        let card = card(
            "rinna/japanese-gpt-neox-3.6b",
            &identity,
            generation.parse().unwrap(),
            &Recipe::from_toml("").unwrap(),
        );
        let front = card
            .strip_prefix("---\n")
            .and_then(|rest| rest.split_once("\n---\n"))
            .unwrap()
            .0;
        for line in [
            "base_model: \"rinna/japanese-gpt-neox-3.6b\"",
            "library_name: peft",
            "language: ja",
        ] {
            assert!(front.lines().any(|l| l == line), "{line} in {front}");
        }
        for part in [
            &format!("`{generation}`"),
            "`b0`, held as f32",
            &format!("`{}`", "d0".repeat(32)),
            "rank 8, alpha 32, dropout 0.1, on `query_key_value`",
        ] {
            assert!(card.contains(part), "{part} in {card}");
        }
        let samples = togi_runtime::registry::model_card::samples(&card);
        assert_eq!(samples.len(), SAMPLES.len());
        assert_eq!(
            samples[0],
            prompt::generation("包丁を研ぐ前に準備するものを教えてください。", "")
        );
    }
}
