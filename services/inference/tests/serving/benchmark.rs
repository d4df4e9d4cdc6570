//! The client of `benches/serving` against a real server: a change of the service that breaks it is
//! seen here, not at the next measurement on a GPU.

use togi_testing::within;

use crate::deployment::Deployment;
use crate::harness::{BaseKind, Setup};
use crate::prompts::{Prompts, asked};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_benchmark_asks_prompts_and_receives_answers_of_exact_lengths() {
    let system = Setup::new(BaseKind::Random).await.ready().await;
    let deployment = Deployment::new(system.endpoint(), system.endpoint(), "", 2).unwrap();
    let mut prompts = Prompts::open(&system.base_folder, 7).unwrap();
    for (tokens, new) in [(1, 1), (2, 40), (33, 5), (120, 72)] {
        let question = prompts.question(&asked(3, 0), tokens, new).unwrap();
        // It checks the counts that the server tells.
        let answer = within("an answer", deployment.ask(&question)).await;
        let answer = answer.unwrap();
        assert_eq!((answer.ids.len(), answer.times.len()), (new, new));
        assert!(answer.generation.is_empty() && answer.times.is_sorted());
    }
    let too_long = prompts.question("", 120, 73).unwrap_err().to_string();
    assert!(too_long.contains("192"), "{too_long}");
    assert!(deployment.served().await.unwrap().adapters.is_empty());
    system.until_empty().await;
    system.stop().await.unwrap();
}
