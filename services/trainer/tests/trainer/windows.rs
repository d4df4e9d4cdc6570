//! A window's loss: the sum of its token losses over the number of its learned targets, regardless
//! of its division into micro-batches.

use std::path::Path;

use togi_model::{Base, Batch, Engine, WindowLoss, base};
use togi_proto::job::v1::JobState;
use togi_tokens::Row;
use togi_trainer::learn::data::{Order, Reader};
use togi_trainer::learn::snapshot::Progress;

use crate::harness::{Process, System};
use crate::inputs::{BASE, RECORDS, asked, config, steps};

/// Records of a window.
const WINDOW: u32 = 8;

/// Writes a base whose losses differ strongly between records; a base with small random weights
/// finds all tokens equally likely.
fn write_opinionated(folder: &Path) {
    let values = |name: &str, len: usize| {
        let sign = |place: usize| if place * place % 7 < 3 { 1.0 } else { -1.0 };
        let size = if name.contains("norm") { 1.0 } else { 0.3 };
        (0..len).map(|place| size * sign(place)).collect()
    };
    base::write(folder, &config(), values).unwrap();
}

/// The data set's first window, in the stored order.
async fn first_window(process: &Process, dataset: &str) -> Vec<Row> {
    let order = Order {
        dataset: dataset.to_owned(),
        split: togi_tokens::Split::Train,
        rows: RECORDS as u64,
        seed: 0,
        shuffle: false,
        epochs: 1,
    };
    let (reader, mut rows) = Reader::new(process.channel(), order, 1 << 20);
    let reader = tokio::spawn(reader.run(Progress::default()));
    let take = move || (0..WINDOW).map(|_| rows.next().unwrap().unwrap()).collect();
    let window = tokio::task::spawn_blocking(take).await.unwrap();
    reader.await.unwrap();
    window
}

/// Returns the records' loss over the base alone, which equals that with an untrained adapter.
fn loss(engine: &Engine, rows: &[Row]) -> WindowLoss {
    let mut batch = Batch::new();
    for row in rows {
        batch.push(&row.input_ids, &row.labels, 0);
    }
    engine.evaluate(None, &batch).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn accumulation_over_the_window_is_weighted_by_tokens() {
    let system = System::start();
    write_opinionated(&system.base_folder(BASE));
    let process = system.process("one").await;
    let dataset = process.prepare("questions", RECORDS).await;
    let mut runs = Vec::new();
    for batch_size in [WINDOW, 4, 1] {
        let mut request = asked(&dataset, 2);
        let recipe = request.recipe.as_mut().unwrap();
        recipe.shuffle = Some(false);
        recipe.batch_size = Some(batch_size);
        recipe.accumulation = Some(WINDOW / batch_size);
        let id = process.create(request).await;
        let (lines, ended) = process.watch(&id, 1, usize::MAX).await;
        assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.error);
        runs.push(lines.iter().map(|line| line.loss).collect::<Vec<_>>());
    }
    // This covers the smaller last window of an epoch, and losses that depend on earlier gradients.
    assert_eq!(runs[0].len() as u64, steps(2));
    for cut in &runs[1..] {
        for (whole, cut) in runs[0].iter().zip(cut) {
            assert!((whole - cut).abs() < 1e-5, "{whole} or {cut}");
        }
    }

    // A mean of the records' means would also be independent of the division. It is another value,
    // because the records differ in length.
    let rows = first_window(&process, &dataset).await;
    let engine = Engine::new(Base::load(&system.base_folder(BASE)).unwrap().into()).unwrap();
    let expected = loss(&engine, &rows).mean();
    let apart = rows
        .iter()
        .map(|row| loss(&engine, std::slice::from_ref(row)).mean());
    let by_record = apart.sum::<f64>() / rows.len() as f64;
    let first = runs[0][0];
    assert!(
        (expected - by_record).abs() > 5e-4,
        "{expected} and {by_record}"
    );
    assert!((first - expected).abs() < 1e-5, "{first} for {expected}");
    process.stop().await;
}
