//! The losses of a whole run and the objects that it stores.

use togi_proto::job::v1::JobState;
use togi_proto::trainer::v1::{GetAdapterRequest, ListAdaptersRequest, ListAliasesRequest};
use togi_runtime::layout;
use togi_runtime::registry::adapter_manifest::AdapterManifest;

use crate::harness::{Process, System};
use crate::inputs::{ALIAS, RECORDS, asked, config, numbers, steps};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_repeats_its_losses_and_leaves_a_complete_adapter() {
    let system = System::start();
    let process = system.process("one").await;
    let dataset = process.prepare("questions", RECORDS).await;
    let id = process.create(asked("questions", 5)).await;
    let (lines, ended) = process.watch(&id, 0, usize::MAX).await;
    assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
    assert_eq!(numbers(&lines), (1..=steps(5)).collect::<Vec<_>>());
    let (first, last) = (&lines[0], lines.last().unwrap());
    assert!(last.loss < first.loss, "{} then {}", first.loss, last.loss);
    // The third window has only 6 records but completes the epoch.
    assert_eq!((last.epoch, lines[2].epoch), (5.0, 1.0));
    assert_eq!(last.tokens, 5 * lines[2].tokens);
    assert_eq!(
        (
            first.learning_rate,
            lines[1].learning_rate,
            lines[2].learning_rate
        ),
        (0.0, 5e-3, 1e-2)
    );

    // An identical job repeats the losses and makes the same generation.
    let again = process.create(asked(&dataset, 5)).await;
    let (repeated, ended_again) = process.watch(&again, 1, usize::MAX).await;
    let losses =
        |lines: &[togi_proto::trainer::v1::Step]| lines.iter().map(|l| l.loss).collect::<Vec<_>>();
    assert_eq!(losses(&repeated), losses(&lines));
    assert_eq!(ended_again.result, ended.result);

    check_objects(&process, &id, &ended.result, &dataset).await;
    check_registry(&process, &ended.result).await;
    process.stop().await;
}

/// Checks the stored objects: the folder as PEFT reads it, complete before its manifest, and the
/// job's reports.
async fn check_objects(process: &Process, id: &str, generation: &str, dataset: &str) {
    let store = process.store();
    let manifest: AdapterManifest = store
        .get_json(&layout::adapter_manifest(generation.parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(
        (
            manifest.generation.to_string().as_str(),
            manifest.job.as_str()
        ),
        (generation, id)
    );
    assert_eq!(manifest.identity.dataset.to_string(), dataset);
    assert!(manifest.bit_exact);
    let mut files = Vec::new();
    for name in manifest.files.keys() {
        files.push(
            store
                .get(&layout::adapter_file(manifest.generation, name))
                .await
                .unwrap(),
        );
    }
    assert_eq!(
        manifest.files.keys().collect::<Vec<_>>(),
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors"
        ]
    );
    togi_model::adapter::from_files(&files[1], &files[2], &config()).unwrap();
    let job = id.parse().unwrap();
    let report: serde_json::Value = store.get_json(&layout::job_report(&job)).await.unwrap();
    assert_eq!(
        (&report["steps"], &report["samples"]),
        (&15.into(), &110.into())
    );
    assert!(
        report["trainable_share"]
            .as_f64()
            .is_some_and(|share| share > 0.0 && share < 0.1),
        "{report}"
    );
    let state: serde_json::Value = store
        .get_json(&layout::job_trainer_state(&job))
        .await
        .unwrap();
    assert_eq!(state["log_history"].as_array().unwrap().len(), 15);
    assert_eq!(store.list(&layout::job_runs(&job)).await.unwrap().len(), 1);
    let log = store.get(&layout::job_log(&job)).await.unwrap();
    assert_eq!(
        log.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .count(),
        15
    );
    assert!(
        store
            .list(&layout::job_log_segments(&job))
            .await
            .unwrap()
            .is_empty()
    );
}

/// Checks that there is one adapter, and that its alias is at its first revision although two jobs
/// promoted it.
async fn check_registry(process: &Process, generation: &str) {
    let adapters = process
        .adapters()
        .list_adapters(ListAdaptersRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(adapters.adapters.len(), 1);
    assert_eq!(adapters.adapters[0].aliases, [ALIAS]);
    let aliases = process
        .adapters()
        .list_aliases(ListAliasesRequest {})
        .await
        .unwrap()
        .into_inner()
        .aliases;
    assert_eq!((aliases[0].name.as_str(), aliases[0].revision), (ALIAS, 1));
    for name in [ALIAS, generation, &generation[..8]] {
        let asked = GetAdapterRequest {
            adapter: name.to_owned(),
        };
        let found = process
            .adapters()
            .get_adapter(asked)
            .await
            .unwrap()
            .into_inner()
            .adapter
            .unwrap();
        assert_eq!(found.generation, generation, "{name}");
        assert_eq!(found.rank, 2);
        assert!(found.size_bytes > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_is_no_number_ends_the_job_with_step_samples_and_checkpoint() {
    let system = System::start();
    let process = system.process("one").await;
    process.prepare("questions", RECORDS).await;
    let mut asked = asked("questions", 2);
    let recipe = asked.recipe.as_mut().unwrap();
    recipe.learning_rate = Some(1e38);
    recipe.warmup_steps = Some(0);
    recipe.checkpoint_every = Some(1);
    let id = process.create(asked).await;
    let job = process.wait_for(&id, JobState::Failed).await;
    let error = job.error.unwrap();
    assert_eq!(
        (error.code.as_str(), job.attempts),
        ("FAILED_PRECONDITION", 1)
    );
    let checkpoint = format!("jobs/{id}/checkpoints/1/");
    for part in [
        "of step 2 is not finite",
        "epoch 0",
        "samples ",
        &checkpoint,
    ] {
        assert!(error.message.contains(part), "{part} in {}", error.message);
    }
    assert_eq!(numbers(&process.watch(&id, 1, usize::MAX).await.0), [1]);
    process.stop().await;
}
