//! The project's recipes are valid.

use std::fs;
use std::path::Path;

use togi_trainer::Recipe;
use togi_trainer::recipe::Precision;

#[test]
fn every_recipe_is_complete_and_takes_the_steps_that_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let recipe =
            Recipe::from_toml(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), recipe.name);
        let written: toml::Table = text.parse().unwrap();
        let complete = serde_json::to_value(&recipe).unwrap();
        let keys = |object: &serde_json::Value| object.as_object().unwrap().len();
        assert_eq!(
            written.len(),
            keys(&complete),
            "{} leaves a field out",
            recipe.name
        );
        assert_eq!(
            written["lora"].as_table().unwrap().len(),
            keys(&complete["lora"]),
            "{}",
            recipe.name
        );
        found.push((
            recipe.name.clone(),
            recipe.precision,
            recipe.steps(15_015),
            recipe.steps(300),
        ));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        found,
        [
            ("demo-cpu".to_owned(), Precision::F32, 37_540, 760),
            ("rinna-3.6b-a100".to_owned(), Precision::Nf4, 470, 10),
            ("rinna-3.6b-article".to_owned(), Precision::Int8, 939, 19),
            ("rinna-3.6b-bf16".to_owned(), Precision::Bf16, 470, 10),
        ]
    );
}
