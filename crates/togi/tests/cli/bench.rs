//! A folder for commands without services: the embedded base, records, a recipe, and the same
//! inputs for the library.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use togi::embedded;
use togi_model::{Base, Engine, Lora, LoraConfig, Target, adapter};
use togi_tokens::Tokenizer;

use super::world::{Ran, togi};

pub(super) const RECORDS: &str =
    "{\"index\":\"1\",\"instruction\":\"色は？\",\"input\":\"海\\n空\",\"output\":\"青です。\"}
{\"index\":\"2\",\"instruction\":\"数は？\",\"output\":\"三つです。\"}
{\"index\":\"3\",\"instruction\":\"味は？\",\"output\":\"甘いです。\"}
{\"index\":\"4\",\"instruction\":\"形は？\",\"output\":\"丸いです。\"}
{\"index\":\"5\",\"instruction\":\"名は？\",\"output\":\"ポチです。\"}
";

pub(super) const RECIPE: &str = "epochs = 2\nbatch_size = 2\nlearning_rate = 2e-3\nseed = 7\n[lora]\nrank = 2\nalpha = 4.0\ndropout = 0.0\n";

/// A folder with the base in `base` and the input files beside it.
pub(super) struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let base = embedded::write_base(folder.path()).unwrap();
        fs::rename(base, folder.path().join("base")).unwrap();
        let bench = Bench { folder };
        bench.write("records.jsonl", RECORDS);
        bench.write("recipe.toml", RECIPE);
        bench
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(super) fn run(&self, line: &str) -> Ran {
        self.feed(line, "")
    }

    pub(super) fn feed(&self, line: &str, input: &str) -> Ran {
        let words: Vec<&str> = line.split_whitespace().collect();
        togi(self.folder.path(), &words, input)
    }

    pub(super) fn tokenizer(&self) -> Arc<Tokenizer> {
        let model = fs::read(self.path("base/spiece.model")).unwrap();
        Arc::new(Tokenizer::from_bytes(&model).unwrap())
    }

    pub(super) fn engine(&self) -> Engine {
        Engine::new(Arc::new(Base::load(&self.path("base")).unwrap())).unwrap()
    }

    /// Writes an adapter whose B is not zero, and returns it.
    pub(super) fn adapter(&self, name: &str) -> Lora {
        let config = self.engine().config().clone();
        let wanted = LoraConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            targets: vec![Target::QueryKeyValue],
        };
        let mut lora = Lora::init(&config, &wanted, 3).unwrap();
        for (place, value) in lora.values_mut().iter_mut().enumerate() {
            *value += ((place % 13) as f32 - 6.0) * 0.01;
        }
        let files = adapter::to_files(&lora, "base").unwrap();
        fs::create_dir(self.path(name)).unwrap();
        fs::write(self.path(name).join(adapter::CONFIG_FILE), files.config).unwrap();
        fs::write(self.path(name).join(adapter::TENSORS_FILE), files.tensors).unwrap();
        lora
    }

    pub(super) fn train(&self, more: &str) -> Ran {
        self.run(&format!(
            "train --local --base base --recipe recipe.toml --records records.jsonl {more}"
        ))
    }

    pub(super) fn tensors(&self, folder: &str) -> Vec<u8> {
        fs::read(self.path(folder).join(adapter::TENSORS_FILE)).unwrap()
    }

    pub(super) fn log(&self, file: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path(file)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}
