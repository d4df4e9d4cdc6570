//! Two small bases, written to a folder. One is random: each token depends on all before it, and
//! adapters change it. In the other, each token is followed by the one that a table names, so that
//! a test can choose the answer.

use std::path::Path;

use togi_model::{Activation, Config};

use crate::vocabulary;

/// The longest sequence of the random base.
pub const RANDOM_LONGEST: usize = 192;
/// The longest sequence of the base with the table.
pub const TABLE_LONGEST: usize = 4096;

/// Each piece and the next one, in the base with the table; any other piece repeats.
const FOLLOWS: &[(&str, &str)] = &[
    // After a whole prompt: two lines, again and again.
    ("<NL>", "あ"),
    ("あ", "い"),
    ("い", "<NL>"),
    // The end.
    ("う", "え"),
    ("え", "</s>"),
    // A circle with room for stop texts.
    ("か", "き"),
    ("き", "く"),
    ("く", "け"),
    ("け", "こ"),
    ("こ", "か"),
    // <NL> in parts.
    ("さ", "<"),
    ("<", "NL"),
    ("NL", ">"),
    (">", "さ"),
    // 日, byte by byte.
    ("た", "<0xE6>"),
    ("<0xE6>", "<0x97>"),
    ("<0x97>", "<0xA5>"),
    ("<0xA5>", "た"),
];

fn config(hidden: usize, heads: usize, layers: usize, longest: usize) -> Config {
    Config {
        vocab_size: vocabulary::size(),
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: 2 * hidden,
        hidden_act: Activation::Gelu,
        rotary_pct: 1.0,
        rotary_emb_base: 10_000.0,
        max_position_embeddings: longest,
        layer_norm_eps: 1e-5,
        use_parallel_residual: false,
        tie_word_embeddings: false,
        attention_bias: true,
        attention_dropout: 0.0,
        hidden_dropout: 0.0,
        bos_token_id: Some(1),
        eos_token_ids: vec![vocabulary::EOS],
        pad_token_id: None,
    }
}

/// Writes the random base; returns its configuration.
pub fn write_random(folder: &Path) -> Config {
    let config = config(32, 4, 2, RANDOM_LONGEST);
    std::fs::create_dir_all(folder).unwrap();
    togi_model::base::write_random(folder, &config, 7).unwrap();
    std::fs::write(folder.join("spiece.model"), vocabulary::model()).unwrap();
    config
}

/// Writes the base with the table; returns its configuration.
pub fn write_table(folder: &Path) -> Config {
    let vocab = vocabulary::size();
    let hidden = vocab.next_multiple_of(16);
    let config = config(hidden, hidden / 16, 1, TABLE_LONGEST);
    let mut follows: Vec<usize> = (0..vocab).collect();
    for (piece, next) in FOLLOWS {
        follows[vocabulary::id(piece) as usize] = vocabulary::id(next) as usize;
    }
    std::fs::create_dir_all(folder).unwrap();
    // Each token is its own direction, the layers add nothing, and the head reads the direction.
    let values = |name: &str, len: usize| {
        let mut values = vec![
            if name.contains("norm.weight") {
                1.0
            } else {
                0.0
            };
            len
        ];
        for (token, next) in follows.iter().enumerate() {
            match name {
                "gpt_neox.embed_in.weight" => values[token * hidden + token] = 1.0,
                "embed_out.weight" => values[next * hidden + token] = 1.0,
                _ => {}
            }
        }
        values
    };
    togi_model::base::write(folder, &config, values).unwrap();
    std::fs::write(folder.join("spiece.model"), vocabulary::model()).unwrap();
    config
}
