//! Loading base folders in all formats, and refused folders.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use togi_model::{Activation, Base, Config, Error, Precision, base};

use crate::support;

pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn small() -> Config {
    Config {
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 12,
        ..support::config()
    }
}

/// Returns a folder's tensors, to be changed and written again.
pub(crate) fn tensors(dir: &Path) -> Tensors {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (&str, TensorView<'_>)| {
        (
            name.to_owned(),
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    file.iter().map(entry).collect()
}

pub(crate) fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn folder(config: &Config) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    base::write_random(dir.path(), config, 3).unwrap();
    dir
}

fn changed(config: &Config, change: impl Fn(&mut Tensors)) -> togi_model::Result<Base> {
    let dir = folder(config);
    let mut tensors = tensors(dir.path());
    change(&mut tensors);
    write(&dir.path().join("model.safetensors"), &tensors);
    Base::load(dir.path())
}

fn value(base: &Base, name: &str, at: usize) -> f32 {
    base.tensor(name)
        .unwrap()
        .flatten_all()
        .unwrap()
        .get(at)
        .unwrap()
        .to_scalar()
        .unwrap()
}

#[test]
fn a_random_base_is_what_its_seed_says() {
    let config = small();
    let (one, two) = (
        Base::load(folder(&config).path()).unwrap(),
        Base::load(folder(&config).path()).unwrap(),
    );
    assert_eq!(one.digest(), two.digest());
    assert_eq!(one.config(), &config);
    assert_eq!(one.parameters(), config.parameters());
    let dir = tempfile::tempdir().unwrap();
    base::write_random(dir.path(), &config, 4).unwrap();
    assert_ne!(Base::load(dir.path()).unwrap().digest(), one.digest());
    assert!(one.tokenizer().is_none());
    std::fs::write(dir.path().join("tokenizer.model"), b"pieces").unwrap();
    assert_eq!(
        Base::load(dir.path()).unwrap().tokenizer(),
        Some(&b"pieces"[..])
    );
}

#[test]
fn files_of_2023_and_half_precision_are_taken() {
    let config = small();
    let name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight";
    let base = changed(&config, |tensors| {
        for layer in 0..2 {
            let mut buffer = |name: &str, dtype, shape: Vec<usize>, bytes: usize| {
                tensors.insert(
                    format!("gpt_neox.layers.{layer}.attention.{name}"),
                    (dtype, shape, vec![0; bytes]),
                );
            };
            buffer("bias", Dtype::BOOL, vec![1, 1, 4, 4], 16);
            buffer("masked_bias", Dtype::F32, vec![], 4);
            buffer("rotary_emb.inv_freq", Dtype::F32, vec![2], 8);
        }
        let (dtype, _, bytes) = tensors.get_mut(name).unwrap();
        *dtype = Dtype::F16;
        *bytes = (0..96)
            .flat_map(|i| half::f16::from_f32(i as f32 / 8.0).to_le_bytes())
            .collect();
        let (dtype, _, bytes) = tensors.get_mut("gpt_neox.embed_in.weight").unwrap();
        *dtype = Dtype::BF16;
        *bytes = (0..37 * 8)
            .flat_map(|i| half::bf16::from_f32((i % 64) as f32).to_le_bytes())
            .collect();
    })
    .unwrap();
    assert_eq!(value(&base, name, 3), 0.375);
    assert_eq!(value(&base, "gpt_neox.embed_in.weight", 63), 63.0);
}

#[test]
fn shards_with_an_index_are_taken() {
    let config = small();
    let dir = folder(&config);
    let whole = Base::load(dir.path()).unwrap();
    let mut first = tensors(dir.path());
    let second = first.split_off("gpt_neox.layers.0.mlp");
    let mut map = serde_json::Map::new();
    for (file, part) in [
        ("model-00001-of-00002.safetensors", &first),
        ("model-00002-of-00002.safetensors", &second),
    ] {
        write(&dir.path().join(file), part);
        map.extend(part.keys().map(|name| (name.clone(), file.into())));
    }
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let text =
            serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    let sharded = Base::load(dir.path()).unwrap();
    for name in first.keys().chain(second.keys()) {
        assert_eq!(value(&sharded, name, 1), value(&whole, name, 1));
    }
    map.insert("x".into(), "../elsewhere.safetensors".into());
    index(&map);
    assert!(
        Base::load(dir.path())
            .err()
            .unwrap()
            .to_string()
            .contains("elsewhere")
    );
    map.insert("x".into(), "model-00003-of-00002.safetensors".into());
    index(&map);
    assert!(matches!(Base::load(dir.path()), Err(Error::File { .. })));
}

/// The checkpoint has this shape and the buffers of 2023; `pytorch_model.py` wrote it in torch's
/// format.
#[test]
fn a_pytorch_checkpoint_is_taken() {
    let config = Config {
        vocab_size: 5,
        hidden_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 6,
        ..support::config()
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model/pytorch_model.bin");
    std::fs::copy(fixture, dir.path().join("pytorch_model.bin")).unwrap();
    let base = Base::load(dir.path()).unwrap();
    // The script counts up in steps of 1/64 through all values, in the checkpoint's order.
    assert_eq!(value(&base, "gpt_neox.embed_in.weight", 0), 0.0);
    assert_eq!(value(&base, "gpt_neox.embed_in.weight", 19), 19.0 / 64.0);
    assert_eq!(
        value(&base, "gpt_neox.layers.0.input_layernorm.weight", 0),
        20.0 / 64.0
    );
    let last = config.parameters() as f32 - 1.0;
    assert_eq!(value(&base, "embed_out.weight", 19), last / 64.0);
}

#[test]
fn a_tied_head_may_come_as_a_copy_but_not_as_something_else() {
    let config = Config {
        tie_word_embeddings: true,
        ..small()
    };
    changed(&config, |_| ()).unwrap();
    let copy = |tensors: &mut Tensors| {
        let embedding = tensors["gpt_neox.embed_in.weight"].clone();
        tensors.insert("embed_out.weight".into(), embedding);
    };
    changed(&config, copy).unwrap();
    let error = changed(&config, |tensors| {
        copy(tensors);
        tensors.get_mut("embed_out.weight").unwrap().2[1] ^= 1;
    });
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("tie_word_embeddings")
    );
}

#[test]
fn anything_missing_left_over_or_misshapen_is_refused_by_name() {
    let config = small();
    let name = "gpt_neox.layers.1.attention.dense.bias";
    assert!(
        matches!(changed(&config, |t| drop(t.remove(name))), Err(Error::Missing(n)) if n == name)
    );
    let stray =
        |t: &mut Tensors| drop(t.insert("score.weight".into(), (Dtype::F32, vec![1], vec![0; 4])));
    assert!(
        matches!(changed(&config, stray), Err(Error::Unexpected(names)) if names == ["score.weight"])
    );
    let reshape = |t: &mut Tensors| t.get_mut(name).unwrap().1 = vec![2, 4];
    assert!(matches!(changed(&config, reshape), Err(Error::Shape { name: n, .. }) if n == name));
    let integer = |t: &mut Tensors| t.get_mut(name).unwrap().0 = Dtype::I32;
    assert!(
        changed(&config, integer)
            .err()
            .unwrap()
            .to_string()
            .contains(name)
    );
    let nan =
        |t: &mut Tensors| t.get_mut(name).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(changed(&config, nan), Err(Error::NotFinite(n)) if n == name));
    let dir = folder(&config);
    std::fs::write(dir.path().join("model.safetensors"), u64::MAX.to_le_bytes()).unwrap();
    assert!(
        Base::load(dir.path())
            .err()
            .unwrap()
            .to_string()
            .contains("header")
    );
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(
        Base::load(dir.path())
            .err()
            .unwrap()
            .to_string()
            .contains("pytorch_model.bin")
    );
}

fn parse(text: &str) -> togi_model::Result<Config> {
    Config::from_json(text.as_bytes())
}

const SHAPE: &str = r#""model_type": "gpt_neox", "vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32"#;

#[test]
fn old_and_new_names_of_a_configuration_mean_the_same() {
    let old = parse(&format!(
        r#"{{{SHAPE}, "rotary_pct": 0.5, "rotary_emb_base": 5000, "hidden_act": "gelu"}}"#
    ));
    let new = parse(&format!(
        r#"{{{SHAPE}, "rope_parameters": {{"partial_rotary_factor": 0.5, "rope_theta": 5000.0, "rope_type": "default"}}}}"#
    ));
    let old = old.unwrap();
    assert_eq!(old, new.unwrap());
    assert_eq!(
        (
            old.rotary_dim(),
            old.rotary_emb_base,
            old.use_parallel_residual
        ),
        (4, 5000.0, true)
    );
    assert_eq!(Config::from_json(&old.to_json()).unwrap(), old);
    // Each means the same, in the spelling of another year.
    for spelling in [
        r#""rope_scaling": null"#,
        r#""rope_scaling": {}"#,
        r#""rope_scaling": {"type": "default"}"#,
        r#""rope_scaling": {"rope_type": "default", "type": "default"}"#,
        r#""rope_parameters": {"type": "default", "rope_theta": 5000.0}"#,
        r#""partial_rotary_factor": 0.5, "rope_theta": 5000"#,
    ] {
        let text =
            format!(r#"{{{SHAPE}, "rotary_pct": 0.5, "rotary_emb_base": 5000, {spelling}}}"#);
        assert_eq!(parse(&text).unwrap(), old, "{spelling}");
    }
    // transformers 5.24 saves a configuration of 4.57 so: the copies at the top stay alone.
    let saved_again = parse(&format!(
        r#"{{{SHAPE}, "partial_rotary_factor": 0.5, "rope_theta": 5000,
            "rope_parameters": {{"partial_rotary_factor": 0.5, "rope_theta": 5000.0, "rope_type": "default"}}}}"#
    ));
    assert_eq!(saved_again.unwrap(), old);
    let defaults = parse(&format!("{{{SHAPE}}}")).unwrap();
    assert_eq!(
        (
            defaults.rotary_pct,
            defaults.layer_norm_eps,
            defaults.eos_token_ids
        ),
        (0.25, 1e-5, vec![2])
    );
    for (written, ids) in [
        ("7", &[7][..]),
        ("null", &[]),
        ("[]", &[]),
        ("[7, 3]", &[7, 3]),
    ] {
        let config = parse(&format!(r#"{{{SHAPE}, "eos_token_id": {written}}}"#)).unwrap();
        assert_eq!(config.eos_token_ids, ids);
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }
    for (name, kind) in [
        ("gelu_new", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("relu", Activation::Relu),
    ] {
        assert_eq!(
            parse(&format!(r#"{{{SHAPE}, "hidden_act": "{name}"}}"#))
                .unwrap()
                .hidden_act,
            kind
        );
    }
}

#[test]
fn the_ends_of_a_generation_configuration_replace_those_of_the_model() {
    let config = small();
    let from = folder(&config);
    let digest = Base::load(from.path()).unwrap().digest().to_owned();
    let file = from.path().join("generation_config.json");
    let own = &config.eos_token_ids[..];
    for (text, ids) in [
        ("{}", own),
        (r#"{"eos_token_id": null}"#, own),
        (r#"{"eos_token_id": 1}"#, &[1]),
        (r#"{"eos_token_id": [7, 3], "temperature": 0.6}"#, &[7, 3]),
    ] {
        std::fs::write(&file, text).unwrap();
        let base = Base::load(from.path()).unwrap();
        assert_eq!(base.config().eos_token_ids, ids, "{text}");
        assert_eq!(base.digest(), digest);
    }
    let quantized = tempfile::tempdir().unwrap();
    let precision = Precision::Int8;
    base::write_quantized(from.path(), quantized.path(), precision).unwrap();
    let base = Base::load_as(quantized.path(), precision).unwrap();
    assert_eq!(base.config().eos_token_ids, [7, 3]);
    for neutral in [
        r#"{"do_sample": true, "temperature": 0.6, "top_k": 5, "max_length": 20}"#,
        r#"{"stop_strings": null, "bad_words_ids": [], "guidance_scale": 1.0}"#,
    ] {
        std::fs::write(&file, neutral).unwrap();
        assert!(Base::load(from.path()).is_ok(), "{neutral}");
    }
    for wrong in [
        r#"{"eos_token_id": ["</s>"]}"#,
        "[]",
        "{",
        r#"{"stop_strings": ["。"]}"#,
        r#"{"suppress_tokens": [1]}"#,
        r#"{"forced_bos_token_id": 0}"#,
        r#"{"sequence_bias": [[[4], -1.0]]}"#,
    ] {
        std::fs::write(&file, wrong).unwrap();
        assert!(Base::load(from.path()).is_err(), "{wrong}");
    }
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_name() {
    for (field, text) in [
        ("model_type", r#""model_type": "llama""#),
        ("hidden_act", r#""hidden_act": "sigmoid""#),
        (
            "rope_scaling",
            r#""rope_scaling": {"type": "linear", "factor": 2.0}"#,
        ),
        ("rope_type", r#""rope_parameters": {"rope_type": "yarn"}"#),
        (
            "rope_parameters.type",
            r#""rope_parameters": {"type": "linear", "factor": 4.0}"#,
        ),
        (
            "rope_parameters.type",
            r#""rope_parameters": {"rope_type": null, "type": "dynamic", "factor": 4.0}"#,
        ),
        (
            "rope_scaling.rope_type",
            r#""rope_scaling": {"rope_type": "llama3", "factor": 2.0}"#,
        ),
        (
            "differ",
            r#""rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}"#,
        ),
        (
            "differ",
            r#""rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 9}"#,
        ),
        (
            "rope_parameters.full_attention",
            r#""rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}"#,
        ),
        ("rope_scaling", r#""rope_scaling": "linear""#),
        (
            "rope_theta",
            r#""rope_theta": 5000.0, "rotary_emb_base": 10000"#,
        ),
        ("partial_rotary_factor", r#""partial_rotary_factor": 0.5"#),
        (
            "partial_rotary_factor 0.5 at the top",
            r#""partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}"#,
        ),
        (
            "rotary_pct 0.5 and rope_parameters.partial_rotary_factor 1 differ",
            r#""rotary_pct": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}"#,
        ),
        ("pruned_heads", r#""pruned_heads": {"0": [1]}"#),
        ("forced_eos_token_id", r#""forced_eos_token_id": 0"#),
        ("bad_words_ids", r#""bad_words_ids": [[3]]"#),
        ("hidden_dropout", r#""hidden_dropout": 1.0"#),
        ("attention_dropout", r#""attention_dropout": "some""#),
        ("num_attention_heads", r#""num_attention_heads": 3"#),
        ("num_attention_heads", r#""num_attention_heads": 0"#),
        ("vocab_size", r#""vocab_size": -1"#),
        ("rotary_pct", r#""rotary_pct": 1.5"#),
        ("rotary_pct", r#""rotary_pct": 0.4"#),
        ("layer_norm_eps", r#""layer_norm_eps": 0"#),
        ("use_parallel_residual", r#""use_parallel_residual": "yes""#),
    ] {
        // Of two equal keys, the later one counts.
        let error = parse(&format!("{{{SHAPE}, {text}}}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{text}: {error}");
    }
    assert!(matches!(parse("{"), Err(Error::Json { .. })));
    assert!(parse("[]").is_err());
}
