//! A trained adapter as others see it: PEFT's two files, the card, and the generation that names
//! them. A pure function of what it is made of.

use std::collections::BTreeMap;

use bytes::Bytes;
use togi_common::Generation;
use togi_model::{Lora, adapter};
use togi_runtime::registry::adapter_manifest::Identity;
use togi_runtime::registry::model_card::CARD_FILE;

use crate::error::Result;
use crate::papers::model_card;
use crate::recipe::Recipe;

/// An adapter's folder in memory.
#[derive(Debug)]
pub struct Adapter {
    /// Its name: the digest of the tensors and of what they are made of.
    pub generation: Generation,
    /// The folder's files by name.
    pub files: BTreeMap<&'static str, Bytes>,
}

impl Adapter {
    /// Makes the folder of trained tensors over the base that PEFT shall load as `base_name`.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn new(
        lora: &Lora,
        base_name: &str,
        identity: &Identity,
        recipe: &Recipe,
    ) -> Result<Adapter> {
        let files = adapter::to_files(lora, base_name)?;
        let generation = adapter::generation(&files, &togi_base::adapter::identity(identity))?;
        let card = model_card::card(base_name, identity, generation, recipe);
        let files = [
            (adapter::CONFIG_FILE, Bytes::from(files.config)),
            (adapter::TENSORS_FILE, Bytes::from(files.tensors)),
            (CARD_FILE, Bytes::from(card)),
        ];
        Ok(Adapter {
            generation,
            files: files.into(),
        })
    }

    /// Returns the size of the tensors' file in bytes.
    #[must_use]
    pub fn tensors_bytes(&self) -> u64 {
        self.files
            .get(adapter::TENSORS_FILE)
            .map_or(0, |bytes| bytes.len() as u64)
    }
}
