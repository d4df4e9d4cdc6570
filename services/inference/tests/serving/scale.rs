//! alpha / r scales the low-rank part and nothing else.

use togi_model::{Lora, LoraConfig, Target, adapter};

use crate::adapters::{Draft, draft, publish};
use crate::harness::{BaseKind, Setup, System, greedy, question};

/// Publishes an adapter of rank 4 with this alpha, whose B is filled with `b` and signs.
async fn publish_scaled(system: &System, alpha: f64, b: f32) -> String {
    let config = crate::bases::write_random(&system.base_folder);
    let settings = LoraConfig {
        rank: 4,
        alpha,
        dropout: 0.0,
        targets: vec![Target::QueryKeyValue, Target::Dense],
    };
    let mut lora = Lora::init(&config, &settings, 3).unwrap();
    let views: Vec<_> = lora.views().collect();
    for view in views.iter().filter(|view| view.name.contains("lora_B")) {
        let values = &mut lora.values_mut()[view.range.clone()];
        // The signs differ by channel, because a norm removes a part that all channels share.
        for (place, value) in values.iter_mut().enumerate() {
            *value = if place % 3 == 0 { -b } else { b };
        }
    }
    let files = adapter::to_files(&lora, "random").unwrap();
    let made = Draft {
        files,
        ..draft(&system.base_folder, 3)
    };
    publish(&system.store, made).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alpha_over_rank_scales_only_the_low_rank_part() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let say = async |adapter: &str| {
        let answer = system.ask(question(adapter, "問12", greedy(60))).await;
        answer.unwrap().ids
    };
    let base = say("").await;
    // With B = 0 no alpha changes the answer.
    let nothing = publish_scaled(&system, 4096.0, 0.0).await;
    assert_eq!(say(&nothing).await, base);
    // Twice the scale of half the values is the same, to the last bit: all factors are powers of
    // two.
    let plain = say(&publish_scaled(&system, 16.0, 0.25).await).await;
    let halved = say(&publish_scaled(&system, 32.0, 0.125).await).await;
    assert_eq!(plain, halved);
    let louder = say(&publish_scaled(&system, 32.0, 0.25).await).await;
    assert!(plain != base && louder != base && louder != plain);
    system.stop().await.unwrap();
}
