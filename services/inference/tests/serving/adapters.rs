//! Adapters as a trainer would leave them in the store, and ones that nobody should serve.

use std::collections::BTreeMap;
use std::path::Path;

use togi_model::adapter::{self, CONFIG_FILE, Files, TENSORS_FILE};
use togi_model::{Base, Config, Lora, LoraConfig, Target};
use togi_runtime::events::Event;
use togi_runtime::registry::{
    ADAPTER_MANIFEST_VERSION, AdapterFile, AdapterManifest, AliasRevision, Identity,
};
use togi_runtime::{Bus, Store, layout};
use togi_tokens::digest::sha256_hex;

/// What a test may change before an adapter is published.
pub struct Draft {
    /// The files' bytes.
    pub files: Files,
    /// What it says that it was made from.
    pub identity: Identity,
    /// The folder's bytes differ from what the manifest says.
    pub is_corrupt: bool,
    /// The folder's name differs from its digest.
    pub is_misnamed: bool,
}

/// Makes an adapter for the base in a folder; another seed, another adapter. It changes every answer: B is not zero.
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
            dataset: sha256_hex(b"data set"),
            recipe: sha256_hex(b"recipe"),
        },
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
        is_corrupt,
        is_misnamed,
    } = draft;
    let said = adapter::Identity {
        base: identity.base.clone(),
        tokenizer: identity.tokenizer.clone(),
        template: identity.template.clone(),
        dataset: identity.dataset.clone(),
        recipe: identity.recipe.clone(),
        base_representation: identity.base_precision.clone(),
    };
    let generation = match is_misnamed {
        true => sha256_hex(&[files.config.as_slice(), &files.tensors].concat()),
        false => adapter::generation(&files, &said).unwrap(),
    };
    let entry = |bytes: &[u8]| AdapterFile {
        bytes: bytes.len() as u64,
        sha256: sha256_hex(bytes),
    };
    let manifest = AdapterManifest {
        schema_version: ADAPTER_MANIFEST_VERSION,
        generation: generation.clone(),
        identity,
        rank: 4,
        alpha: 16.0,
        target_modules: vec!["query_key_value".into(), "dense".into()],
        files: BTreeMap::from([
            (CONFIG_FILE.to_owned(), entry(&files.config)),
            (TENSORS_FILE.to_owned(), entry(&files.tensors)),
        ]),
        job: "test".into(),
        recipe_name: "test".into(),
    };
    let mut tensors = files.tensors;
    if is_corrupt {
        let last = tensors.len() - 1;
        tensors[last] ^= 1;
    }
    let put = async |name: &str, bytes: Vec<u8>| {
        store
            .put_new(&layout::adapter_file(&generation, name), bytes)
            .await
            .unwrap();
    };
    put(CONFIG_FILE, files.config).await;
    put(TENSORS_FILE, tensors).await;
    store
        .put_new_json(&layout::adapter_manifest(&generation), &manifest)
        .await
        .unwrap();
    generation
}

/// Publishes a good adapter; returns the generation's name.
pub async fn publish_good(store: &Store, base_folder: &Path, seed: u64) -> String {
    publish(store, draft(base_folder, seed)).await
}

/// Lets an alias name a generation in the store, and says so on the bus if there is one; returns the revision.
pub async fn promote(store: &Store, bus: Option<&Bus>, alias: &str, generation: &str) -> u64 {
    move_alias(store, bus, alias, generation, false).await
}

/// Lets an alias name again what it named before.
pub async fn roll_back(store: &Store, bus: Option<&Bus>, alias: &str, generation: &str) -> u64 {
    move_alias(store, bus, alias, generation, true).await
}

async fn move_alias(
    store: &Store,
    bus: Option<&Bus>,
    alias: &str,
    generation: &str,
    rollback: bool,
) -> u64 {
    let said = AliasRevision {
        alias: alias.into(),
        generation: generation.into(),
        rollback,
        time: "2026-01-01T00:00:00Z".into(),
        traceparent: None,
    };
    let bytes = togi_runtime::store::canonical_json(&said).unwrap();
    let folder = layout::alias_revisions(alias);
    let revision = store
        .append_revision(&folder, |_| Ok(bytes.clone().into()))
        .await
        .unwrap();
    if let Some(bus) = bus {
        let (alias, generation) = (alias.to_owned(), generation.to_owned());
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
