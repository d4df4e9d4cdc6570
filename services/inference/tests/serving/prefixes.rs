//! The prefix cache from outside: a prompt that was read before is found, and nothing else changes.

use std::sync::Arc;

use togi_model::{Device, PAGE, memory};
use togi_proto::inference::v1::{GenerateRequest, Options};
use togi_testing::within;

use crate::adapters::{promote, publish_good};
use crate::bases;
use crate::harness::{Answer, BaseKind, Setup, System, raw};

/// A prompt of this many tokens, all but the last those of every other one.
fn prompt(tokens: usize, last: &str) -> String {
    "あかさた"
        .chars()
        .cycle()
        .take(tokens - 1)
        .collect::<String>()
        + last
}

fn request(adapter: &str, prompt: &str, seed: u64) -> GenerateRequest {
    let options = Options {
        seed: Some(seed),
        max_new_tokens: Some(12),
        temperature: Some(1.2),
        no_repeat_ngram_size: Some(0),
        logprobs: Some(4),
        ..Options::default()
    };
    raw(adapter, prompt, options)
}

async fn ask(system: &System, adapter: &str, prompt: &str) -> Answer {
    system.ask(request(adapter, prompt, 7)).await.unwrap()
}

/// Pages of a prompt that are found, all but its last token.
fn found(answer: &Answer) -> usize {
    let tokens = answer.finished.cached_prompt_tokens as usize;
    assert!(tokens.is_multiple_of(PAGE) && tokens < answer.started.prompt_tokens as usize);
    tokens / PAGE
}

fn assert_same(one: &Answer, other: &Answer) {
    assert_eq!((&one.ids, &one.text), (&other.ids, &other.text));
    assert_eq!(one.logprobs, other.logprobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_found_again_and_its_answer_is_the_same() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let mut off = system.beside("without");
    off.config.engine.prefix_cache_bytes = Some(0);
    let off = off.ready().await;
    for generation in 1..=2 {
        let id = publish_good(&system.store, &system.base_folder, generation).await;
        for system in [&system, &off] {
            promote(&system.store, None, "one", &id).await;
            system.until_serving("one", &id).await;
        }
        for adapter in ["", "one"] {
            let longer = prompt(130, "き");
            let cold = ask(&off, adapter, &longer).await;
            assert_eq!(found(&cold), 0);
            let first = ask(&system, adapter, &longer).await;
            let tokens = first.started.prompt_tokens as usize;
            // The base's own pages stay; each generation has its own.
            let all = (tokens - 1) / PAGE;
            let expected = if (adapter, generation) == ("", 2) {
                all
            } else {
                0
            };
            assert_eq!(found(&first), expected, "{adapter:?} {generation}");
            let again = ask(&system, adapter, &longer).await;
            assert_eq!(found(&again), all);
            for answer in [&first, &again, &ask(&off, adapter, &longer).await] {
                assert_same(answer, &cold);
            }
            // Another prompt with this beginning.
            let other = prompt(100, "く");
            let answer = ask(&system, adapter, &other).await;
            assert!(found(&answer) >= 2, "{answer:?}");
            assert_same(&answer, &ask(&off, adapter, &other).await);
        }
    }
    let load = system.replica.load().unwrap();
    assert!(load.pages_cached() >= 12 && load.pages_cached() <= load.pages_free());
    assert_eq!(off.replica.load().unwrap().pages_cached(), 0);
    system.until_empty().await;
    // All tokens of a prompt that is scored are read.
    let mut scored = request("", &prompt(130, "き"), 7);
    scored.options.as_mut().unwrap().prompt_logprobs = Some(1);
    let scored = system.ask(scored).await.unwrap();
    assert_eq!(found(&scored), 0);
    let tokens = scored.started.prompt_tokens as usize;
    assert_eq!(scored.prompt_logprobs.len(), tokens);
    off.stop().await.unwrap();
    system.stop().await.unwrap();
}

/// Pages for two answers, so that what is kept is given away again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_take_the_pages_that_are_only_kept() {
    let mut setup = Setup::new(BaseKind::Random).await;
    let config = bases::write_random(&setup.base_folder());
    setup.config.engine.cache_bytes = Some(10 * memory::page(&config, Device::Cpu));
    let system = Arc::new(setup.ready().await);
    let mut off = system.beside("without");
    off.config.engine.prefix_cache_bytes = Some(0);
    let off = off.ready().await;
    let lasts = ["き", "く", "け", "こ", "た"];
    let prompts: Vec<_> = (0..10).map(|n| prompt(60 + 11 * n, lasts[n % 5])).collect();
    let mut expected = Vec::new();
    for prompt in &prompts {
        expected.push(ask(&off, "", prompt).await);
    }
    let (prompts, expected) = (Arc::new(prompts), Arc::new(expected));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (system, prompts, expected) = (system.clone(), prompts.clone(), expected.clone());
            tokio::spawn(async move {
                for turn in 0..20 {
                    let which = (turn * (client + 3) + client) % prompts.len();
                    let answer = ask(&system, "", &prompts[which]).await;
                    assert_same(&answer, &expected[which]);
                }
            })
        })
        .collect();
    for client in clients {
        within("a client's requests", client).await.unwrap();
    }
    system.until_empty().await;
    let load = system.replica.load().unwrap();
    assert_eq!(load.pages_free(), 10);
    assert!((1..=10).contains(&load.pages_cached()));
    off.stop().await.unwrap();
    Arc::into_inner(system).unwrap().stop().await.unwrap();
}

/// A round of the CPU reads one chunk, so that the prompts that wait find it before their turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_prompts_that_arrive_together_are_read_once() {
    const CLIENTS: usize = 6;
    let system = Arc::new(Setup::new(BaseKind::Random).await.ready().await);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let system = system.clone();
            tokio::spawn(async move { ask(&system, "", &prompt(130, "き")).await })
        })
        .collect();
    let mut answers = Vec::new();
    for client in clients {
        answers.push(within("a client's answer", client).await.unwrap());
    }
    for answer in &answers {
        assert_same(answer, &answers[0]);
    }
    let pages: usize = answers.iter().map(found).sum();
    assert_eq!(pages, (CLIENTS - 1) * 4);
    Arc::into_inner(system).unwrap().stop().await.unwrap();
}
