//! The setting `device`: a missing device is refused by name, an api process plans for the
//! worker's device, and a worker computes on its own.

use togi_model::DeviceName;
use togi_proto::job::v1::JobState;
use togi_proto::trainer::v1::{CreateJobRequest, Step};
use togi_runtime::{Class, layout};
use togi_trainer::Role;

use crate::harness::{Shape, System};
use crate::inputs::{RECORDS, asked};

const NOWHERE: DeviceName = DeviceName::Cuda { ordinal: 99 };

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_card_is_not_there_does_not_start() {
    let system = System::start();
    let shape = Shape {
        device: NOWHERE,
        ..system.shape()
    };
    let refused = system.try_process("one", shape).await.err().unwrap();
    assert_eq!(refused.class(), Class::FailedPrecondition);
    let says = refused.message();
    assert!(says.starts_with("device cuda:99: "), "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_answers_needs_no_card_and_plans_for_it() {
    let system = System::start();
    let shape = |device| Shape {
        roles: vec![Role::Api],
        device,
        ..system.shape()
    };
    let process = system.process_with("gpus", shape(NOWHERE)).await;
    process.prepare("questions", RECORDS).await;
    let mut asked = CreateJobRequest {
        validate_only: true,
        ..asked("questions", 1)
    };
    asked.recipe.as_mut().unwrap().base_precision = "bf16".to_owned();
    let plan = process.trainer().create_job(asked.clone()).await.unwrap();
    let on_a_card = plan.into_inner().plan.unwrap();
    process.stop().await;
    let process = system.process_with("cpus", shape(DeviceName::Cpu)).await;
    let plan = process.trainer().create_job(asked).await.unwrap();
    let here = plan.into_inner().plan.unwrap();
    assert_eq!(
        (here.device.as_str(), on_a_card.device.as_str()),
        ("cpu", "cuda:99")
    );
    // The memory of that GPU is unknown.
    assert_eq!(on_a_card.available_bytes, 0);
    assert!(here.available_bytes > 0);
    // Both plans use the rows' lengths, which are all below the limit of 64.
    assert_eq!(here.tokens, on_a_card.tokens);
    assert!(here.tokens > 0 && here.tokens < 4 * 64, "{}", here.tokens);
    // On a GPU all weights have 16 bits, on the CPU only those of linear layers.
    assert!(on_a_card.weights_bytes < here.weights_bytes);
    process.stop().await;
}

/// Returns a job's losses and its report on a device; `None` if the device is missing, which
/// panics if `TOGI_NEEDS_CUDA` is set.
async fn trained(system: &System, device: DeviceName) -> Option<(Vec<Step>, serde_json::Value)> {
    let shape = Shape {
        device,
        ..system.shape()
    };
    let process = match system.try_process("one", shape).await {
        Ok(process) => process,
        Err(error) => {
            let needed = std::env::var_os("TOGI_NEEDS_CUDA").is_some();
            assert!(!needed, "{error}");
            eprintln!("SKIPPED, no GPU: {error}");
            return None;
        }
    };
    process.prepare("questions", RECORDS).await;
    let id = process.create(asked("questions", 3)).await;
    let (lines, ended) = process.watch(&id, 1, usize::MAX).await;
    assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
    let again = process.create(asked("questions", 3)).await;
    let (_, ended_again) = process.watch(&again, 1, usize::MAX).await;
    assert_eq!(ended_again.result, ended.result, "the same bits");
    let report = layout::job_report(&id.parse().unwrap());
    let report = process.store().get_json(&report).await.unwrap();
    process.stop().await;
    Some((lines, report))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_trains_as_the_cpu_does_and_reports_its_figures() {
    let system = System::start();
    let (want, report) = trained(&system, DeviceName::Cpu).await.unwrap();
    assert!(want.iter().all(|line| line.device_memory_bytes.is_none()));
    assert_eq!(
        (&report["device"], report.get("gpu")),
        (&"cpu".into(), None)
    );
    assert_eq!(report["bit_exact"], true);
    let Some((lines, report)) = trained(&system, DeviceName::Cuda { ordinal: 0 }).await else {
        return;
    };
    assert_eq!(lines.len(), want.len());
    for (line, want) in lines.iter().zip(&want) {
        let off = (line.loss / want.loss - 1.0).abs();
        assert!(off < 1e-3, "step {}: {off:e} off", line.step);
        assert!(line.device_memory_bytes.is_some_and(|bytes| bytes > 0));
    }
    let device = report["device"].as_str().unwrap();
    assert!(device.starts_with("cuda:0 ("), "{device}");
    let most = &report["gpu"]["trainer_memory_bytes"]["max"];
    assert!(most.as_f64().is_some_and(|bytes| bytes > 0.0), "{report}");
}
