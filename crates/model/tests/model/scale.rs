//! alpha / rank scales only the low-rank part.

use togi_model::{Base, Config, Engine, Lora, LoraConfig, Target, adapter, merge};

use crate::support::{self, On, on_each_device};

on_each_device!(an_adapter_that_adds_nothing_changes_no_bit_whatever_its_alpha);

/// Returns the same factors with another alpha.
fn with_alpha(config: &Config, alpha: f64) -> Lora {
    let settings = LoraConfig {
        alpha,
        ..support::lora_config(&[Target::QueryKeyValue, Target::Dense4hToH])
    };
    let values = support::lora(config, &settings.targets);
    let mut lora = Lora::init(config, &settings, 0).unwrap();
    lora.values_mut().copy_from_slice(values.values());
    lora
}

fn merged(engine: &Engine, lora: &Lora) -> Base {
    let folder = tempfile::tempdir().unwrap();
    let special = merge::Special::of(engine.config());
    merge::write_merged(folder.path(), engine.base(), lora, &special).unwrap();
    Base::load(folder.path()).unwrap()
}

fn values(base: &Base, name: &str) -> Vec<f32> {
    let tensor = base.tensor(name).unwrap().flatten_all().unwrap();
    tensor.to_vec1().unwrap()
}

#[test]
fn twice_the_alpha_is_twice_the_update_of_adapted_weights_alone() {
    let config = support::config();
    let engine = support::engine(&config);
    let (once, twice) = (
        merged(&engine, &with_alpha(&config, 8.0)),
        merged(&engine, &with_alpha(&config, 16.0)),
    );
    let update = |base: &Base, name: &str| -> Vec<f32> {
        let plain = values(engine.base(), name);
        let pairs = values(base, name).into_iter().zip(plain);
        pairs.map(|(with, without)| with - without).collect()
    };
    for adapted in ["attention.query_key_value", "mlp.dense_4h_to_h"] {
        let name = format!("gpt_neox.layers.1.{adapted}.weight");
        let doubled: Vec<f32> = update(&once, &name).iter().map(|x| 2.0 * x).collect();
        assert!(doubled.iter().any(|x| x.abs() > 1e-2));
        support::assert_close(&update(&twice, &name), &doubled, 1e-5, &name);
    }
    for plain in [
        "gpt_neox.layers.1.attention.query_key_value.bias",
        "gpt_neox.layers.1.attention.dense.weight",
        "gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
        "gpt_neox.final_layer_norm.weight",
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
    ] {
        assert!(update(&twice, plain).iter().all(|x| *x == 0.0), "{plain}");
    }
}

fn an_adapter_that_adds_nothing_changes_no_bit_whatever_its_alpha(on: &On) {
    let config = support::config();
    let engine = on.engine(&config);
    let settings = LoraConfig {
        alpha: 1e6,
        ..support::lora_config(&Target::ALL)
    };
    let fresh = Lora::init(&config, &settings, 1).unwrap();
    let files = adapter::to_files(&fresh, "base").unwrap();
    let read = adapter::from_files(&files.config, &files.tensors, &config).unwrap();
    let adapter = engine.adapter(&read).unwrap();
    let ids = [3, 1, 4, 1, 5, 9, 2, 6];
    let logits = |adapter| engine.decode(&mut engine.cache(), &ids, adapter).unwrap();
    assert_eq!(logits(Some(&adapter)), logits(None));
}
