//! The tests' inputs: a base, records, recipes.

use std::path::Path;

use togi_model::{Activation, Config, base};
use togi_proto::trainer::v1::{CreateJobRequest, Lora, Recipe, Step};

/// Records of a data set: per epoch, two full windows of 8 and one of 6.
pub(crate) const RECORDS: usize = 22;
pub(crate) const BASE: &str = "tiny";
pub(crate) const ALIAS: &str = "answers";
pub(crate) const TOKENIZER: &[u8] =
    include_bytes!("../../../../crates/tokens/tests/fixtures/plain.model");

/// A request for `epochs` passes over a data set, with fast steps.
pub(crate) fn asked(dataset: &str, epochs: u32) -> CreateJobRequest {
    CreateJobRequest {
        base: BASE.to_owned(),
        dataset: dataset.to_owned(),
        recipe: Some(recipe(epochs)),
        alias: ALIAS.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn recipe(epochs: u32) -> Recipe {
    Recipe {
        name: "tiny".to_owned(),
        epochs: Some(epochs),
        batch_size: Some(4),
        accumulation: Some(2),
        learning_rate: Some(1e-2),
        warmup_steps: Some(2),
        checkpoint_every: Some(20),
        lora: Some(Lora {
            rank: Some(2),
            dropout: Some(0.1),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn config() -> Config {
    Config {
        vocab_size: 1024,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 32,
        hidden_act: Activation::Gelu,
        rotary_pct: 1.0,
        rotary_emb_base: 10_000.0,
        max_position_embeddings: 64,
        layer_norm_eps: 1e-5,
        use_parallel_residual: false,
        tie_word_embeddings: false,
        attention_bias: true,
        attention_dropout: 0.0,
        hidden_dropout: 0.0,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}

pub(crate) fn write_base(folder: &Path, config: &Config, tokenizer: &[u8]) {
    std::fs::create_dir_all(folder).unwrap();
    base::write_random(folder, config, 7).unwrap();
    std::fs::write(folder.join("spiece.model"), tokenizer).unwrap();
}

/// Records as JSON lines, all different. A longer list begins with the shorter one.
pub(crate) fn lines(records: usize) -> String {
    let record = |n: usize| {
        serde_json::json!({
            "instruction": format!("研ぎ石の{n}番はどこですか?"),
            "input": if n.is_multiple_of(3) { "図書館" } else { "" },
            "output": format!("{}です。", n * n),
            "category": "closed_qa",
            "index": n.to_string(),
        })
    };
    (0..records).map(|n| record(n).to_string() + "\n").collect()
}

/// Optimizer steps of a job over [`RECORDS`] records.
pub(crate) fn steps(epochs: u32) -> u64 {
    (RECORDS as u64).div_ceil(8) * u64::from(epochs)
}

pub(crate) fn numbers(steps: &[Step]) -> Vec<u64> {
    steps.iter().map(|step| step.step).collect()
}
