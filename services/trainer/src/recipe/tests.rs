//! What a recipe takes and refuses.

use super::*;

fn field_of(change: impl FnOnce(&mut proto::Recipe)) -> &'static str {
    let mut recipe = proto::Recipe {
        lora: Some(proto::Lora::default()),
        ..Default::default()
    };
    change(&mut recipe);
    match Recipe::from_proto(&recipe).unwrap_err() {
        Error::Invalid { field, .. } => field,
        other => panic!("not about a field: {other}"),
    }
}

fn lora_field_of(change: impl FnOnce(&mut proto::Lora)) -> &'static str {
    field_of(|recipe| change(recipe.lora.as_mut().unwrap()))
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
    assert_eq!(field_of(|r| r.epochs = Some(0)), "recipe.epochs");
    assert_eq!(field_of(|r| r.batch_size = Some(0)), "recipe.batch_size");
    assert_eq!(
        field_of(|r| r.batch_size = Some(u32::MAX)),
        "recipe.batch_size"
    );
    assert_eq!(
        field_of(|r| r.accumulation = Some(0)),
        "recipe.accumulation"
    );
    for wrong in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
        assert_eq!(
            field_of(|r| r.learning_rate = Some(wrong)),
            "recipe.learning_rate"
        );
        assert_eq!(
            field_of(|r| r.adam_epsilon = Some(wrong)),
            "recipe.adam_epsilon"
        );
        assert_eq!(
            lora_field_of(|l| l.alpha = Some(wrong)),
            "recipe.lora.alpha"
        );
    }
    for wrong in [f64::NAN, -0.1, 1.0, f64::NEG_INFINITY] {
        assert_eq!(
            field_of(|r| r.adam_beta1 = Some(wrong)),
            "recipe.adam_beta1"
        );
        assert_eq!(
            field_of(|r| r.adam_beta2 = Some(wrong)),
            "recipe.adam_beta2"
        );
        assert_eq!(
            lora_field_of(|l| l.dropout = Some(wrong)),
            "recipe.lora.dropout"
        );
    }
    for wrong in [f64::NAN, -0.1, f64::INFINITY] {
        assert_eq!(
            field_of(|r| r.weight_decay = Some(wrong)),
            "recipe.weight_decay"
        );
        assert_eq!(
            field_of(|r| r.max_gradient_norm = Some(wrong)),
            "recipe.max_gradient_norm"
        );
    }
    assert_eq!(
        field_of(|r| r.base_precision = "int3".into()),
        "recipe.base_precision"
    );
    assert_eq!(field_of(|r| r.promote = "later".into()), "recipe.promote");
    assert_eq!(field_of(|r| r.name = "a\nb".into()), "recipe.name");
    assert_eq!(lora_field_of(|l| l.rank = Some(0)), "recipe.lora.rank");
    assert_eq!(
        lora_field_of(|l| l.target_modules = vec!["embed_in".into()]),
        "recipe.lora.target_modules"
    );
    assert_eq!(
        lora_field_of(|l| l.target_modules = vec!["dense".into(), "dense".into()]),
        "recipe.lora.target_modules"
    );
    assert!(matches!(
        Recipe::from_toml("learning_rat = 1.0"),
        Err(Error::Invalid {
            field: "recipe",
            ..
        })
    ));
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
        recipe("name = \"a\"\ncheckpoint_every = 7\npromote = \"manual\"\nepochs = 1")
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
    assert_eq!(Recipe::from_proto(&recipe.to_proto()).unwrap(), recipe);
}
