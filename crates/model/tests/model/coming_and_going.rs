//! Adapters are brought onto the device and dropped while passes run, and no answer changes.

use std::sync::mpsc::sync_channel;

use togi_model::decode::{Decoder, Share};
use togi_model::sampling::Options;
use togi_model::{Adapter, Engine, Lora, Target};

use crate::support::{self, On, on_each_device};

on_each_device!(
    an_adapter_is_whole_at_its_first_pass,
    an_adapter_that_goes_takes_nothing_from_a_pass,
);

const PROMPT: [u32; 5] = [4, 8, 15, 16, 23];
const ADAPTERS: usize = 5;

/// Adapters with answers of their own.
fn loras(engine: &Engine) -> Vec<Lora> {
    let of = |number: usize| {
        let mut lora = support::lora(engine.config(), &Target::ALL);
        for (place, value) in lora.values_mut().iter_mut().enumerate() {
            *value *= 1.0 + ((place * (number + 1)) as f32).sin();
        }
        lora
    };
    (0..ADAPTERS).map(of).collect()
}

/// Writes a greedy answer.
fn write(engine: &Engine, adapter: Adapter) -> Vec<u32> {
    let options = Options {
        greedy: true,
        no_repeat_ngram_size: 0,
        max_new_tokens: 12,
        ..Options::default()
    };
    let decoder = Decoder::new(engine, None);
    let mut sequence = decoder.begin(&PROMPT, Some(adapter), &options).unwrap();
    let mut ids = Vec::new();
    loop {
        let tokens = sequence.chunk(2);
        let share = Share {
            sequence: &mut sequence,
            tokens,
        };
        let Some(choice) = decoder.run(&mut [share]).remove(0).unwrap() else {
            continue;
        };
        ids.push(choice.id);
        if choice.end.is_some() {
            return ids;
        }
    }
}

fn expected(engine: &Engine, loras: &[Lora]) -> Vec<Vec<u32>> {
    let write = |lora| write(engine, engine.adapter(lora).unwrap());
    let expected: Vec<_> = loras.iter().map(write).collect();
    for (number, answer) in expected.iter().enumerate() {
        assert!(
            !expected[..number].contains(answer),
            "{number} is another's"
        );
    }
    expected
}

fn an_adapter_is_whole_at_its_first_pass(on: &On) {
    let engine = on.engine(&support::config());
    let loras = loras(&engine);
    let expected = expected(&engine, &loras);
    let (send, ready) = sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let send = send;
            for number in (0..ADAPTERS).cycle().take(60) {
                send.send((number, engine.adapter(&loras[number]).unwrap()))
                    .unwrap();
            }
        });
        for (number, adapter) in ready {
            assert_eq!(write(&engine, adapter), expected[number], "of {number}");
        }
    });
}

fn an_adapter_that_goes_takes_nothing_from_a_pass(on: &On) {
    let engine = on.engine(&support::config());
    let loras = loras(&engine);
    let expected = expected(&engine, &loras);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for lora in loras.iter().cycle().take(500) {
                drop(engine.adapter(lora).unwrap());
            }
        });
        for number in (0..ADAPTERS).cycle().take(60) {
            // Its memory is free for the other thread's next one as soon as the answer ends.
            let adapter = engine.adapter(&loras[number]).unwrap();
            assert_eq!(write(&engine, adapter), expected[number], "of {number}");
        }
    });
}
