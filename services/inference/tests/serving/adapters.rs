//! Adapters as a trainer writes them to the store, and broken ones that must be refused.

use std::collections::BTreeMap;
use std::path::Path;

use togi_common::{Digest, canonical};
use togi_model::adapter::{self, CONFIG_FILE, Files, TENSORS_FILE};
use togi_model::{Base, Config, Lora, LoraConfig, Target};
use togi_runtime::events::Event;
use togi_runtime::registry::adapter_manifest::{
    ADAPTER_MANIFEST_VERSION, AdapterFile, AdapterManifest, Identity,
};
use togi_runtime::registry::model_card::CARD_FILE;
use togi_runtime::registry::revisions::{AliasRevision, BaseMismatch};
use togi_runtime::{Bus, Store, layout};

/// An adapter that a test may change before it is published.
pub struct Draft {
    /// The files' bytes.
    pub files: Files,
    /// The identity in its manifest.
    pub identity: Identity,
    /// The model card.
    pub card: Option<String>,
    /// Whether the folder's bytes differ from the manifest's digests.
    pub is_corrupt: bool,
    /// Whether the folder's name differs from its digest.
    pub is_misnamed: bool,
}

/// Makes an adapter for the base in a folder, another one for each seed. Its B is not zero, so that
/// it changes every answer.
pub fn draft(base_folder: &Path, seed: u64) -> Draft {
    let base = Base::load(base_folder).unwrap();
    let tokenizer = togi_tokens::Tokenizer::from_bytes(base.tokenizer().unwrap()).unwrap();
    Draft {
        files: files(base.config(), seed),
        identity: Identity {
            base: base.digest().to_owned(),
            base_precision: "f32".into(),
            tokenizer: tokenizer.digest().to_owned(),
            template: togi_tokens::prompt::template_digest().to_owned(),
            dataset: Digest::of("data set").into(),
            recipe: Digest::of("recipe").to_string(),
        },
        card: None,
        is_corrupt: false,
        is_misnamed: false,
    }
}

/// The files of an adapter for a model of this shape.
pub fn files(config: &Config, seed: u64) -> Files {
    let targets = vec![Target::QueryKeyValue, Target::Dense];
    let settings = LoraConfig {
        rank: 4,
        alpha: 16.0,
        dropout: 0.0,
        targets,
    };
    let mut lora = Lora::init(config, &settings, seed).unwrap();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let views: Vec<_> = lora.views().collect();
    for view in views.iter().filter(|view| view.name.contains("lora_B")) {
        for value in &mut lora.values_mut()[view.range.clone()] {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *value = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        }
    }
    adapter::to_files(&lora, "random").unwrap()
}

/// Publishes a draft; returns the generation's name.
pub async fn publish(store: &Store, draft: Draft) -> String {
    let Draft {
        files,
        identity,
        card,
        is_corrupt,
        is_misnamed,
    } = draft;
    let said = adapter::Identity {
        base: identity.base.clone(),
        tokenizer: identity.tokenizer.clone(),
        template: identity.template.clone(),
        dataset: identity.dataset.into(),
        recipe: identity.recipe.clone(),
        base_precision: identity.base_precision.clone(),
    };
    let generation = match is_misnamed {
        true => Digest::of([files.config.as_slice(), &files.tensors].concat()).into(),
        false => adapter::generation(&files, &said).unwrap(),
    };
    let entry = |bytes: &[u8]| AdapterFile {
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes).to_string(),
    };
    let mut files_by_name = BTreeMap::from([
        (CONFIG_FILE.to_owned(), entry(&files.config)),
        (TENSORS_FILE.to_owned(), entry(&files.tensors)),
    ]);
    if let Some(card) = &card {
        files_by_name.insert(CARD_FILE.to_owned(), entry(card.as_bytes()));
    }
    // What the manifest repeats, or what a test made of the configuration.
    let config: serde_json::Value = serde_json::from_slice(&files.config).unwrap_or_default();
    let manifest = AdapterManifest {
        schema_version: ADAPTER_MANIFEST_VERSION,
        generation,
        identity,
        rank: config["r"].as_u64().unwrap_or(4) as u32,
        alpha: config["lora_alpha"].as_f64().unwrap_or(16.0),
        target_modules: serde_json::from_value(config["target_modules"].clone())
            .unwrap_or_default(),
        files: files_by_name,
        job: "test".into(),
        recipe_name: "test".into(),
        bit_exact: true,
    };
    let mut tensors = files.tensors;
    if is_corrupt {
        let last = tensors.len() - 1;
        tensors[last] ^= 1;
    }
    let put = async |name: &str, bytes: Vec<u8>| {
        store
            .put_new(&layout::adapter_file(generation, name), bytes)
            .await
            .unwrap();
    };
    put(CONFIG_FILE, files.config).await;
    put(TENSORS_FILE, tensors).await;
    if let Some(card) = card {
        put(CARD_FILE, card.into_bytes()).await;
    }
    store
        .put_new_json(&layout::adapter_manifest(generation), &manifest)
        .await
        .unwrap();
    generation.to_string()
}

/// Publishes a good adapter; returns the generation's name.
pub async fn publish_good(store: &Store, base_folder: &Path, seed: u64) -> String {
    publish(store, draft(base_folder, seed)).await
}

/// Lets an alias name a generation in the store, publishes it if there is a bus, and returns
/// the revision.
pub async fn promote(store: &Store, bus: Option<&Bus>, alias: &str, generation: &str) -> u64 {
    say(store, bus, revision(alias, generation)).await
}

/// As [`promote`], over any precision of the base.
pub async fn promote_over_any_base(
    store: &Store,
    bus: Option<&Bus>,
    alias: &str,
    generation: &str,
) -> u64 {
    let said = AliasRevision {
        base_mismatch: BaseMismatch::Allowed,
        ..revision(alias, generation)
    };
    say(store, bus, said).await
}

/// Lets an alias name an earlier generation again.
pub async fn roll_back(store: &Store, bus: Option<&Bus>, alias: &str, generation: &str) -> u64 {
    let said = AliasRevision {
        rollback: true,
        ..revision(alias, generation)
    };
    say(store, bus, said).await
}

fn revision(alias: &str, generation: &str) -> AliasRevision {
    AliasRevision {
        alias: alias.parse().unwrap(),
        generation: generation.parse().unwrap(),
        rollback: false,
        base_mismatch: BaseMismatch::Refused,
        time: "2026-01-01T00:00:00Z".into(),
        traceparent: None,
    }
}

async fn say(store: &Store, bus: Option<&Bus>, said: AliasRevision) -> u64 {
    let AliasRevision {
        alias,
        generation,
        rollback,
        ..
    } = said.clone();
    let bytes = canonical::json(&said).unwrap();
    let folder = layout::alias_revisions(&alias);
    let revision = store
        .append_revision(&folder, |_| Ok(bytes.clone().into()))
        .await
        .unwrap();
    let (alias, generation) = (alias.into(), generation.into());
    if let Some(bus) = bus {
        let event: Event = match rollback {
            true => togi_proto::events::v1::AdapterRolledBack {
                alias,
                generation,
                revision,
            }
            .into(),
            false => togi_proto::events::v1::AdapterPromoted {
                alias,
                generation,
                revision,
            }
            .into(),
        };
        bus.publish(event).await.unwrap();
    }
    revision
}
