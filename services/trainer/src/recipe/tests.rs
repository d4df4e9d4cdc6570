//! What a recipe takes and refuses.

use super::*;

fn field_of(text: &str) -> &'static str {
    match Recipe::from_toml(text).unwrap_err() {
        Error::Invalid { field, .. } => field,
        other => panic!("not about a field: {other}"),
    }
}

#[test]
fn an_empty_recipe_has_the_contracts_defaults() {
    let recipe = Recipe::from_toml("").unwrap();
    assert_eq!(
        (
            recipe.epochs,
            recipe.batch_size,
            recipe.accumulation,
            recipe.seed
        ),
        (1, 4, 1, 42)
    );
    assert_eq!(
        (
            recipe.learning_rate,
            recipe.max_gradient_norm,
            recipe.checkpoint_every
        ),
        (2e-4, 1.0, 100)
    );
    assert_eq!(
        (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout),
        (8, 32.0, 0.1)
    );
    assert_eq!(recipe.target_names(), ["query_key_value"]);
    assert!(
        recipe.shuffle && recipe.promote == Promote::Auto && recipe.precision == Precision::F32
    );
}

#[test]
fn a_wrong_number_is_refused_by_its_fields_name() {
    let above_zero = ["nan", "inf", "-1.0", "0.0"];
    let below_one = ["nan", "-0.1", "1.0", "-inf"];
    let not_negative = ["nan", "-0.1", "inf"];
    let table: [(&str, &[&str]); 16] = [
        ("epochs", &["0"]),
        ("batch_size", &["0", "4294967295"]),
        ("accumulation", &["0"]),
        ("learning_rate", &above_zero),
        ("adam_epsilon", &above_zero),
        ("lora.alpha", &above_zero),
        ("adam_beta1", &below_one),
        ("adam_beta2", &below_one),
        ("lora.dropout", &below_one),
        ("weight_decay", &not_negative),
        ("max_gradient_norm", &not_negative),
        ("max_loss_rise", &not_negative),
        ("base_precision", &["'int3'"]),
        ("promote", &["'later'"]),
        ("name", &[r#""a\nb""#]),
        ("lora.rank", &["0"]),
    ];
    for (field, values) in table {
        for value in values {
            let text = format!("{field} = {value}");
            assert_eq!(field_of(&text), format!("recipe.{field}"), "{text}");
        }
    }
    for targets in ["['embed_in']", "['dense', 'dense']"] {
        let text = format!("lora.target_modules = {targets}");
        assert_eq!(field_of(&text), "recipe.lora.target_modules");
    }
    assert_eq!(field_of("learning_rat = 1.0"), "recipe");
}

#[test]
fn steps_count_the_last_partial_window() {
    let recipe = |text| Recipe::from_toml(text).unwrap();
    assert_eq!(
        recipe("batch_size = 4\naccumulation = 4").steps(15_015),
        939
    );
    assert_eq!(
        recipe("batch_size = 16\naccumulation = 2").steps(15_015),
        470
    );
    assert_eq!(recipe("batch_size = 8\nepochs = 20").steps(300), 760);
    assert_eq!(
        recipe("batch_size = 8\nepochs = 20\nmax_steps = 5").steps(300),
        5
    );
}

#[test]
fn the_digest_follows_numbers_and_nothing_else() {
    let recipe = |text| Recipe::from_toml(text).unwrap().digest();
    let plain = recipe("");
    assert_eq!(
        plain,
        recipe(
            "name = \"a\"\ncheckpoint_every = 7\npromote = \"manual\"\nepochs = 1\nmax_loss_rise = 3.0"
        )
    );
    assert_ne!(plain, recipe("seed = 43"));
    assert_ne!(plain, recipe("[lora]\nrank = 4"));
    assert_eq!(
        recipe("[lora]\ntarget_modules = [\"dense\", \"query_key_value\"]"),
        recipe("[lora]\ntarget_modules = [\"query_key_value\", \"dense\"]")
    );
}

#[test]
fn a_validated_recipe_survives_the_contract() {
    let recipe = Recipe::from_toml("name = \"x\"\nlearning_rate = 1e-3\n[lora]\nrank = 2").unwrap();
    let stored = serde_json::to_string(&recipe).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&stored).unwrap(), recipe);
}

/// The digest is part of every adapter's identity, and a stored recipe part of its job's.
#[test]
fn a_recipe_without_new_fields_keeps_its_digest_and_its_spelling() {
    let plain = Recipe::from_toml("").unwrap();
    assert_eq!(
        plain.digest(),
        "4b2de44eac52d309aed10becea69aa34a7255b4dcecc56455f2acdfc7333b489"
    );
    let stored = serde_json::to_value(&plain).unwrap();
    assert!(stored.get("maxLossRise").is_none(), "{stored}");
    let set = Recipe::from_toml("max_loss_rise = 2.5").unwrap();
    let stored = serde_json::to_value(&set).unwrap();
    assert_eq!(stored["maxLossRise"], 2.5);
    assert_eq!(serde_json::from_value::<Recipe>(stored).unwrap(), set);
}
