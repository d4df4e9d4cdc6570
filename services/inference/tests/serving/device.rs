//! The setting `device`: a replica ends without the device, and answers the same on every device.

use togi_model::DeviceName;
use togi_runtime::Class;
use togi_testing::within;

use crate::harness::{Answer, BaseKind, Setup, greedy, question};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_device_ends_with_the_reason() {
    let mut setup = Setup::new(BaseKind::Random).await;
    setup.config.device = DeviceName::Cuda { ordinal: 99 };
    let system = setup.start().await;
    within("the replica ends", system.stopper.stopped()).await;
    let error = system.stop().await.unwrap_err();
    assert_eq!(error.class(), Class::FailedPrecondition);
    let says = error.message();
    assert!(says.starts_with("device cuda:99: "), "{says}");
}

async fn answer(device: DeviceName) -> Answer {
    let mut setup = Setup::new(BaseKind::Random).await;
    setup.config.device = device;
    for base in setup.config.bases.values_mut() {
        base.precision = Some("f32".into());
    }
    let system = setup.ready().await;
    let answer = system.ask(question("", "問", greedy(20))).await.unwrap();
    system.stop().await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_answers_as_the_cpu_does() {
    let gpu = DeviceName::Cuda { ordinal: 0 };
    if let Err(error) = gpu.open() {
        let needed = std::env::var_os("TOGI_NEEDS_CUDA").is_some();
        assert!(!needed, "{error}");
        eprintln!("SKIPPED, no GPU: {error}");
        return;
    }
    let (here, there) = (answer(DeviceName::Cpu).await, answer(gpu).await);
    assert!(!here.text.is_empty());
    assert_eq!(here.text, there.text);
}
