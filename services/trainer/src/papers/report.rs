//! The documents of a finished job: `report.json`, `trainer_state.json` (as transformers' Trainer
//! writes it) and the seconds at which each step ended. Pure functions of the log's lines and the
//! run's summary.

use serde_json::{Map, Value, json};
use togi_common::Generation;
use togi_model::engine::BIT_EXACT;

use crate::learn::losses;
use crate::learn::step::Step;
use crate::recipe::Recipe;

/// The facts of a run that its lines do not have.
#[derive(Clone, Debug)]
pub(crate) struct RunSummary {
    /// The job.
    pub job: String,
    /// What it made.
    pub generation: Generation,
    /// Where the base's files are from: a URL, with the commit if it is a hub's.
    pub base_origin: String,
    /// Rows of an epoch.
    pub rows: u64,
    /// Records trained on.
    pub samples: u64,
    /// Seconds spent in steps, of all workers together.
    pub seconds: f64,
    /// Claims of the job that failed before this one.
    pub failed_attempts: u32,
    /// The worker that finished it.
    pub worker: String,
    /// The device that it computed on.
    pub device: String,
    /// Most resident memory of the worker, in bytes.
    pub peak_memory_bytes: u64,
    /// Size of the adapter's tensors' file, in bytes.
    pub adapter_bytes: u64,
    /// Values that were trained.
    pub trainable_parameters: u64,
    /// Values of the base.
    pub base_parameters: u64,
}

/// Returns `report.json`.
#[must_use]
pub(crate) fn report(facts: &RunSummary, recipe: &Recipe, lines: &[Step]) -> Value {
    let loss: Vec<f64> = lines.iter().map(|line| line.loss).collect();
    // One step is a few records; the end of the run is the mean of its last tenth.
    let last = losses::last_tenth(lines);
    let norm: Vec<f64> = lines.iter().map(|line| line.gradient_norm).collect();
    let tokens = lines.last().map_or(0, |line| line.tokens);
    let all = facts.base_parameters + facts.trainable_parameters;
    let seconds = facts.seconds.max(1e-9);
    let mut report = json!({
        "job": facts.job,
        "generation": facts.generation,
        "base_origin": facts.base_origin,
        "recipe": recipe,
        "recipe_digest": recipe.digest(),
        "steps": lines.len(),
        "epochs": lines.last().map_or(0.0, |line| line.epoch),
        "rows": facts.rows,
        "samples": facts.samples,
        "tokens": tokens,
        "seconds": facts.seconds,
        "samples_per_second": facts.samples as f64 / seconds,
        "tokens_per_second": tokens as f64 / seconds,
        "steps_per_second": lines.len() as f64 / seconds,
        "loss": {
            "first": loss.first(),
            "last": last.map(|mean| mean.loss),
            "last_steps": last.map(|mean| mean.steps),
            "mean": mean(&loss),
        },
        "gradient_norm": { "first": norm.first(), "last": norm.last(), "mean": mean(&norm), "largest": largest(&norm) },
        "peak_memory_bytes": facts.peak_memory_bytes,
        "adapter_bytes": facts.adapter_bytes,
        "trainable_parameters": facts.trainable_parameters,
        "base_parameters": facts.base_parameters,
        "trainable_share": facts.trainable_parameters as f64 / all.max(1) as f64,
        "failed_attempts": facts.failed_attempts,
        "worker": facts.worker,
        "device": facts.device,
        "bit_exact": BIT_EXACT,
        "skipped_steps": skipped(lines),
    });
    if let Some(gpu) = gpu(lines) {
        report["gpu"] = gpu;
    }
    report
}

/// Returns the GPU's readings; `None` without any.
fn gpu(lines: &[Step]) -> Option<Value> {
    let bytes = |figure: fn(&Step) -> Option<u64>| spread(lines, |line| Some(figure(line)? as f64));
    let figures = [
        (
            "utilization_percent",
            spread(lines, |line| line.gpu_utilization_percent),
        ),
        ("power_watts", spread(lines, |line| line.gpu_power_watts)),
        ("memory_bytes", bytes(|line| line.gpu_memory_bytes)),
        (
            "trainer_memory_bytes",
            bytes(|line| line.device_memory_bytes),
        ),
    ];
    let known = figures
        .into_iter()
        .filter_map(|(name, figure)| Some((name.to_owned(), figure?)));
    let known: Map<String, Value> = known.collect();
    (!known.is_empty()).then_some(known.into())
}

/// Mean and largest of a figure, over the lines that have it.
fn spread(lines: &[Step], figure: impl Fn(&Step) -> Option<f64>) -> Option<Value> {
    let values: Vec<f64> = lines.iter().filter_map(figure).collect();
    Some(json!({ "mean": mean(&values)?, "max": largest(&values) }))
}

/// Steps that changed nothing. Each worker counts its own from 0.
fn skipped(lines: &[Step]) -> u64 {
    let mut before = 0;
    let mut skipped = 0;
    for line in lines {
        skipped += line.skipped_steps.saturating_sub(before);
        before = line.skipped_steps;
    }
    skipped
}

/// Returns `trainer_state.json` with the names of transformers' Trainer.
#[must_use]
pub(crate) fn trainer_state(recipe: &Recipe, lines: &[Step]) -> Value {
    let history: Vec<Value> = lines
        .iter()
        .map(|line| {
            let mut entry = json!({
                "step": line.step,
                "epoch": line.epoch,
                "loss": line.loss,
                "grad_norm": line.gradient_norm,
                "learning_rate": line.learning_rate,
            });
            for (name, figure) in [
                ("gpu_utilization_percent", line.gpu_utilization_percent),
                ("gpu_power_watts", line.gpu_power_watts),
                (
                    "gpu_memory_bytes",
                    line.gpu_memory_bytes.map(|bytes| bytes as f64),
                ),
            ] {
                if let Some(figure) = figure {
                    entry[name] = figure.into();
                }
            }
            entry
        })
        .collect();
    json!({
        "best_global_step": null,
        "best_metric": null,
        "best_model_checkpoint": null,
        "epoch": lines.last().map_or(0.0, |line| line.epoch),
        "eval_steps": 500,
        "global_step": lines.len(),
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history,
        "logging_steps": 1,
        "max_steps": lines.last().map_or(0, |line| line.steps),
        "num_input_tokens_seen": lines.last().map_or(0, |line| line.tokens),
        "num_train_epochs": recipe.epochs,
        "save_steps": recipe.checkpoint_every,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": recipe.batch_size,
        "trial_name": null,
        "trial_params": null,
    })
}

/// Returns each line with the seconds of training at its end.
#[must_use]
pub(crate) fn timed(lines: &[Step]) -> Vec<(f64, Step)> {
    let (mut seconds, mut tokens) = (0.0, 0);
    lines
        .iter()
        .map(|line| {
            if line.tokens_per_second > 0.0 {
                seconds += line.tokens.saturating_sub(tokens) as f64 / line.tokens_per_second;
            }
            tokens = line.tokens;
            (seconds, *line)
        })
        .collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn largest(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Step> {
        let line = |step, loss, tokens| Step {
            step,
            steps: 2,
            loss,
            gradient_norm: loss / 2.0,
            epoch: step as f64 / 2.0,
            tokens,
            tokens_per_second: 50.0,
            ..Default::default()
        };
        vec![line(1, 4.0, 100), line(2, 2.0, 150)]
    }

    #[test]
    fn a_report_has_the_runs_table() {
        let facts = RunSummary {
            job: "j".into(),
            generation: "a".repeat(64).parse().unwrap(),
            base_origin: "file:///base".into(),
            rows: 8,
            samples: 16,
            seconds: 3.0,
            failed_attempts: 0,
            worker: "w".into(),
            device: "cpu".into(),
            peak_memory_bytes: 1,
            adapter_bytes: 2,
            trainable_parameters: 1,
            base_parameters: 99,
        };
        let report = report(&facts, &Recipe::from_toml("").unwrap(), &lines());
        assert_eq!(
            report["loss"],
            json!({ "first": 4.0, "last": 2.0, "last_steps": 1, "mean": 3.0 })
        );
        assert_eq!(report["gradient_norm"]["largest"], 2.0);
        assert_eq!(
            (&report["steps"], &report["tokens_per_second"]),
            (&json!(2), &json!(50.0))
        );
        assert_eq!(report["trainable_share"], 0.01);
    }

    #[test]
    fn a_cards_figures_are_there_where_there_is_a_card_and_absent_elsewhere() {
        let mut lines = lines();
        assert_eq!(gpu(&lines), None);
        let recipe = Recipe::from_toml("").unwrap();
        let state = trainer_state(&recipe, &lines);
        assert_eq!(state["log_history"][0].get("gpu_power_watts"), None);
        (lines[0].gpu_power_watts, lines[1].gpu_power_watts) = (Some(500.0), Some(600.0));
        lines[1].device_memory_bytes = Some(9);
        let expected = json!({
            "power_watts": { "mean": 550.0, "max": 600.0 },
            "trainer_memory_bytes": { "mean": 9.0, "max": 9.0 },
        });
        assert_eq!(gpu(&lines), Some(expected));
        let state = trainer_state(&recipe, &lines);
        assert_eq!(state["log_history"][1]["gpu_power_watts"], 600.0);
    }

    #[test]
    fn skipped_steps_add_up_over_workers() {
        let of = |counts: &[u64]| {
            let line = |&skipped_steps: &u64| Step {
                skipped_steps,
                ..Default::default()
            };
            skipped(&counts.iter().map(line).collect::<Vec<_>>())
        };
        assert_eq!(of(&[0, 1, 1, 2]), 2);
        assert_eq!(of(&[1, 2, 0, 1]), 3);
    }

    #[test]
    fn a_trainer_state_has_a_line_for_each_step() {
        let state = trainer_state(&Recipe::from_toml("").unwrap(), &lines());
        assert_eq!(state["global_step"], 2);
        assert_eq!(state["log_history"][1]["grad_norm"], 1.0);
    }

    #[test]
    fn lines_are_timed_by_their_own_speed() {
        let seconds: Vec<f64> = timed(&lines())
            .into_iter()
            .map(|(seconds, _)| seconds)
            .collect();
        assert_eq!(seconds, [2.0, 3.0]);
    }

    #[test]
    fn a_report_spells_the_recipe_as_the_contract_does() {
        let facts = RunSummary {
            job: String::new(),
            generation: "a".repeat(64).parse().unwrap(),
            base_origin: "file:///base".into(),
            rows: 0,
            samples: 0,
            seconds: 0.0,
            failed_attempts: 0,
            worker: String::new(),
            device: String::new(),
            peak_memory_bytes: 0,
            adapter_bytes: 0,
            trainable_parameters: 0,
            base_parameters: 0,
        };
        let recipe = Recipe::from_toml("max_steps = 3").unwrap();
        let spelled = report(&facts, &recipe, &[])["recipe"].take();
        let expected = json!({
            "basePrecision": "f32", "epochs": 1, "maxSteps": "3", "batchSize": 4,
            "accumulation": 1, "learningRate": 2e-4, "warmupSteps": "0", "adamBeta1": 0.9,
            "adamBeta2": 0.999, "adamEpsilon": 1e-8, "weightDecay": 0.0, "maxGradientNorm": 1.0,
            "seed": "42", "shuffle": true, "checkpointEvery": "100", "promote": "auto",
            "lora": {
                "rank": 8, "alpha": 32.0, "dropout": 0.1, "targetModules": ["query_key_value"],
            },
        });
        assert_eq!(spelled, expected);
    }
}
