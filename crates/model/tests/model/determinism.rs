//! The same work gives the same bits in every run and with any number of threads.

use std::process::Command;

use togi_model::{Config, Dropout, Target};

use crate::support::{self, On, on_each_device};

on_each_device!(
    training_and_decoding_repeat_bit_for_bit,
    a_process_tells_its_fingerprint,
);

fn wide() -> Config {
    // Large enough that products and loops are split into parallel parts.
    Config {
        vocab_size: 600,
        hidden_size: 192,
        num_attention_heads: 4,
        intermediate_size: 768,
        num_hidden_layers: 2,
        ..support::config()
    }
}

/// Returns a number that depends on every bit of a step's loss and gradients and of some logits.
fn fingerprint(on: &On) -> u64 {
    let config = wide();
    let engine = on.engine(&config);
    let lora = support::lora(&config, &Target::ALL);
    let batch = support::batch(&config, &[60, 33, 64, 17, 64, 50]);
    let dropout = Dropout {
        p: 0.1,
        seed: 4,
        step: 7,
    };
    let (loss, grads) =
        support::learn(&engine, &lora, std::slice::from_ref(&batch), Some(&dropout));
    let logits = engine
        .decode(&mut engine.cache(), &batch.ids[..60], None)
        .unwrap();
    let values = grads
        .iter()
        .chain(&logits)
        .map(|value| u64::from(value.to_bits()));
    values.fold(loss.sum.to_bits(), |print, bits| {
        (print ^ bits)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(17)
    })
}

fn training_and_decoding_repeat_bit_for_bit(on: &On) {
    let reference = fingerprint(on);
    assert_eq!(fingerprint(on), reference);
}

#[test]
fn pools_of_other_counts_of_threads_get_the_same_bits() {
    let reference = fingerprint(&On::CPU);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert_eq!(
            pool.install(|| fingerprint(&On::CPU)),
            reference,
            "a pool of {threads} threads"
        );
    }
}

const MARK: &str = "fingerprint of this process: ";

fn a_process_tells_its_fingerprint(on: &On) {
    eprintln!("{MARK}{:016x}", fingerprint(on));
}

/// Returns another process's output for a device; `None` if the device is absent.
fn told_by_a_process(device: &str, threads: &str) -> Option<String> {
    let test = format!("determinism::a_process_tells_its_fingerprint::{device}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env("RAYON_NUM_THREADS", threads)
        .output()
        .unwrap();
    assert!(output.status.success(), "{device}");
    let text = String::from_utf8(output.stderr).unwrap();
    let at = text.find(MARK)?;
    Some(text[at + MARK.len()..][..16].to_owned())
}

/// The products read the number of threads from the environment once, so each number needs its own
/// process.
#[test]
fn processes_with_other_counts_of_threads_get_the_same_bits() {
    let told = |threads| told_by_a_process("cpu", threads).unwrap();
    let reference = told("1");
    for threads in ["2", "3", "7"] {
        assert_eq!(told(threads), reference, "{threads} threads");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn processes_on_one_card_get_the_same_bits() {
    if support::has_card() {
        for device in ["cuda_f32", "cuda_bf16"] {
            let told = [(); 2].map(|()| told_by_a_process(device, "2").unwrap());
            assert_eq!(told[0], told[1], "{device}");
        }
    }
}
