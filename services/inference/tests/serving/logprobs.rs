//! Log-probabilities of prompts and answers.

use togi_proto::inference::v1::{Options, TokenLogprobs};

use crate::harness::{BaseKind, Setup, System, greedy, question, raw};
use crate::vocabulary;

async fn random() -> System {
    Setup::new(BaseKind::Random).await.ready().await
}

/// Checks that a token among the likeliest has the same number there.
fn assert_one_number(token: &TokenLogprobs) {
    for top in &token.top {
        assert!(top.token_id != token.token_id || Some(top.logprob) == token.logprob);
    }
    assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_token_of_the_answer_has_its_log_probability() {
    let system = random().await;
    let ask = async |options| system.ask(question("", "問2", options)).await.unwrap();
    let answer = ask(Options {
        logprobs: Some(20),
        ..greedy(20)
    })
    .await;
    let told: Vec<u32> = answer.logprobs.iter().map(|token| token.token_id).collect();
    assert_eq!(told, answer.ids);
    for token in &answer.logprobs {
        assert_eq!(token.top.len(), 20);
        // A greedy token without bans is the likeliest.
        assert_eq!(token.top[0].token_id, token.token_id);
        assert_one_number(token);
    }
    let fewer = ask(Options {
        logprobs: Some(0),
        ..greedy(20)
    })
    .await;
    for (token, with_top) in fewer.logprobs.iter().zip(&answer.logprobs) {
        assert!(token.top.is_empty());
        assert_eq!(token.logprob, with_top.logprob);
    }
    let without = ask(greedy(20)).await;
    assert!(without.logprobs.is_empty() && without.prompt_logprobs.is_empty());
    assert_eq!(without.ids, answer.ids);
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bias_and_bans_do_not_change_what_the_network_says() {
    let system = random().await;
    let ask = async |options| system.ask(question("", "問2", options)).await.unwrap();
    let plain = ask(Options {
        logprobs: Some(3),
        ..greedy(1)
    })
    .await;
    let first = &plain.logprobs[0];
    // The likeliest token is forbidden, so that the second is drawn.
    let biased = ask(Options {
        logprobs: Some(3),
        logit_bias: [(first.token_id, -100.0)].into(),
        ..greedy(1)
    })
    .await;
    assert_eq!(biased.ids, [first.top[1].token_id]);
    assert_eq!(biased.logprobs[0].top, first.top);
    assert_eq!(biased.logprobs[0].logprob, Some(first.top[1].logprob));
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_token_of_the_prompt_has_its_log_probability() {
    let mut setup = Setup::new(BaseKind::Random).await;
    setup.config.engine.prefill_chunk = 64;
    let system = setup.ready().await;
    let ask = async |text: &str, options| system.ask(raw("", text, options)).await.unwrap();
    let scored = || Options {
        prompt_logprobs: Some(3),
        logprobs: Some(3),
        ..greedy(1)
    };
    // Longer than a chunk, and than the rows that are scored at once; a token for each character.
    let text = "あいうえおかきくけこ".repeat(9);
    let whole = ask(&text, scored()).await.prompt_logprobs;
    let ids: Vec<u32> = whole.iter().map(|token| token.token_id).collect();
    let pieces: Vec<u32> = text
        .chars()
        .map(|c| vocabulary::id(&c.to_string()))
        .collect();
    assert_eq!(ids, pieces);
    assert_eq!((whole[0].logprob, whole[0].top.len()), (None, 0));
    for token in &whole[1..] {
        assert!(token.logprob.unwrap() < 0.0);
        assert_eq!(token.top.len(), 3);
        assert_one_number(token);
    }
    // What is likely after a part of the prompt is so whether it is read on or answered.
    for place in [1, 63, 64, 65, 80] {
        let part: String = text.chars().take(place).collect();
        let answer = ask(&part, scored()).await;
        let first = &answer.logprobs[0];
        for (first, read) in first.top.iter().zip(&whole[place].top) {
            assert_eq!(first.token_id, read.token_id);
            let apart = (first.logprob - read.logprob).abs();
            assert!(apart < 1e-4, "{first:?} {read:?}");
        }
    }
    system.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_one_token_has_no_log_probability() {
    let system = random().await;
    let options = Options {
        prompt_logprobs: Some(5),
        ..greedy(2)
    };
    let answer = system.ask(raw("", "あ", options)).await.unwrap();
    let token = &answer.prompt_logprobs[0];
    assert_eq!(answer.prompt_logprobs.len(), 1);
    assert_eq!(
        (token.token_id, token.logprob),
        (vocabulary::id("あ"), None)
    );
    system.stop().await.unwrap();
}
