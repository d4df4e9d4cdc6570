//! Jobs whose base is held in 8 or 4 bits: they are accepted on the CPU too, planned, trained, and
//! distinguished from each other.

use std::fs;
use std::path::Path;

use togi_model::Config;
use togi_proto::job::v1::JobState;
use togi_proto::trainer::v1::{CreateJobRequest, Recipe};
use togi_runtime::layout;
use togi_runtime::registry::adapter_manifest::AdapterManifest;

use crate::harness::{Process, System};
use crate::inputs::{RECORDS, TOKENIZER, asked, config, write_base};

/// Reads one of the project's recipes.
fn recipe(name: &str) -> Recipe {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    toml::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

async fn manifest(process: &Process, generation: &str) -> AdapterManifest {
    let path = layout::adapter_manifest(generation.parse().unwrap());
    process.store().get_json(&path).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recipes_over_quantized_bases_are_accepted_and_trained() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let mut generations = Vec::new();
    // One job at a time: the worker frees one representation of the base to load the other.
    for (name, precision) in [
        ("rinna-3.6b-a100.toml", "nf4"),
        ("rinna-3.6b-article.toml", "int8"),
        ("rinna-3.6b-a100.toml", "nf4"),
    ] {
        let request = CreateJobRequest {
            recipe: Some(recipe(name)),
            ..asked("questions", 1)
        };
        let id = process.create(request).await;
        let ended = process.wait_for(&id, JobState::Succeeded).await;
        let manifest = manifest(&process, &ended.result).await;
        assert_eq!(manifest.identity.base_precision, precision);
        let card = layout::adapter_file(manifest.generation, "README.md");
        let card = process.store().get(&card).await.unwrap();
        assert!(
            !togi_runtime::registry::model_card::samples(std::str::from_utf8(&card).unwrap())
                .is_empty()
        );
        generations.push(ended.result);
    }
    assert_eq!(generations[0], generations[2], "the same job again");
    assert_ne!(generations[0], generations[1]);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_precision_of_the_base_changes_the_losses_and_the_memory_plan() {
    let system = System::start();
    // Wide enough for packed weights to be smaller, including their tables.
    let wide = Config {
        hidden_size: 128,
        intermediate_size: 256,
        ..config()
    };
    write_base(&system.base_folder("wide"), &wide, TOKENIZER);
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let (mut losses, mut weights) = (Vec::new(), Vec::new());
    for precision in ["f32", "int8", "nf4"] {
        let mut request = asked("questions", 1);
        request.base = "wide".into();
        let recipe = request.recipe.as_mut().unwrap();
        recipe.base_precision = precision.into();
        let only_planned = CreateJobRequest {
            validate_only: true,
            ..request.clone()
        };
        let planned = process.trainer().create_job(only_planned).await.unwrap();
        weights.push(planned.into_inner().plan.unwrap().weights_bytes);
        let id = process.create(request).await;
        let (lines, ended) = process.watch(&id, 1, usize::MAX).await;
        assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
        losses.push(lines[0].loss);
    }
    assert!(
        weights[0] > weights[1] && weights[1] > weights[2],
        "{weights:?}"
    );
    for (loss, close) in [(losses[1], 1e-2), (losses[2], 1e-1)] {
        let difference = (loss - losses[0]).abs();
        assert!(difference > 0.0 && difference < close, "{losses:?}");
    }
    process.stop().await;
}
