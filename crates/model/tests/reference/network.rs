//! Logits of `GPTNeoXForCausalLM`: every variant, every format of a checkpoint, over a cache and
//! without.

use togi_model::{Activation, Base, Config};

use crate::fixtures::{self, assert_near, path, stepped, whole};

const TOLERANCE: f64 = 1e-4;

/// The configuration of a variant by its name in the fixture.
fn apply(name: &str, config: &mut Config) {
    let parts: Vec<&str> = name.split('-').collect();
    let [residual, rotary, head, activation] = parts[..] else {
        panic!("{name} is no variant");
    };
    config.use_parallel_residual = residual == "parallel";
    config.rotary_pct = rotary.parse().unwrap();
    config.tie_word_embeddings = head == "tied";
    config.hidden_act = match activation {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        other => panic!("{other} is no activation"),
    };
}

#[test]
fn logits_of_every_variant_are_those_of_transformers_with_a_cache_and_without() {
    let ids: Vec<Vec<u32>> = fixtures::json("network.json");
    let mut variants = 0;
    for (name, (_, want)) in fixtures::tensors(&path("network.safetensors")) {
        if name.starts_with("form-") {
            continue;
        }
        let engine = fixtures::variant(|config| apply(&name, config));
        let passes = whole(&engine, &ids[0], None);
        let steps = stepped(&engine, &ids[0], None);
        assert_near(&passes, &want, TOLERANCE, &name);
        assert_near(&steps, &want, TOLERANCE, &format!("{name} over a cache"));
        assert_near(
            &steps,
            &passes,
            1e-5,
            &format!("{name}, cache against pass"),
        );
        variants += 1;
    }
    assert_eq!(variants, 24);
}

#[test]
fn the_names_of_activations_are_those_of_transformers() {
    let text = std::fs::read_to_string(path("base/config.json")).unwrap();
    for (name, activation) in [
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
    ] {
        let text = text.replace("\"gelu\"", &format!("{name:?}"));
        let config = Config::from_json(text.as_bytes()).unwrap();
        assert_eq!(config.hidden_act, activation, "{name}");
    }
}

#[test]
fn one_checkpoint_in_four_forms_gives_the_logits_of_transformers() {
    let ids: Vec<Vec<u32>> = fixtures::json("network.json");
    let logits = fixtures::tensors(&path("network.safetensors"));
    for (form, folder) in [
        ("single", "base"),
        ("sharded", "forms/sharded"),
        ("pickled", "forms/pickled"),
        ("old", "forms/old"),
    ] {
        let engine = fixtures::load(&path(folder));
        let want = &logits[&format!("form-{form}")].1;
        assert_near(&whole(&engine, &ids[1], None), want, TOLERANCE, form);
    }
    let digest = |folder: &str| Base::load(&path(folder)).unwrap().digest().to_owned();
    assert_ne!(
        digest("base"),
        digest("forms/old"),
        "other bytes, another base"
    );
}
