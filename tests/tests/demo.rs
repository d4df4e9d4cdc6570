//! The demo reaches its targets on this machine: correct answers, generations and counts.

// clippy.toml allows `unwrap` in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

use togi::output::{Format, Output};
use togi_model::DeviceName;
use togi_runtime::Stopper;

#[test]
fn the_adapter_answers_what_the_base_cannot_and_the_second_generation_what_the_first_could_not() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let output = Output::new(Format::Table, true, true);
    let report = runtime
        .block_on(togi::demo::run(
            &output,
            folder.path(),
            DeviceName::Cpu,
            Stopper::new(),
        ))
        .unwrap();

    report.check().unwrap();
    let held_out = report.held_out();
    assert!(held_out.after.asked >= 30, "{held_out:?}");
    assert_eq!(report.new_facts().after.asked, 10);
    let [first, second] = &report.generations[..] else {
        panic!("{:?}", report.generations)
    };
    assert_ne!(first, second);
    for event in [
        "dataset.ready",
        "adapter.published",
        "adapter.promoted",
        "adapter.loaded",
    ] {
        assert_eq!(
            report.events.get(event),
            Some(&2),
            "{event}: {:?}",
            report.events
        );
    }
}
