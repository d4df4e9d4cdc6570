//! What a run's losses say together: their mean at the end, and whether they rose. A single step's
//! loss is that of a few records, and the last window of an epoch may have only one.

use crate::learn::step::Step;

/// Fewest records of a mean that is compared: the loss of one record says little.
const FEWEST: u64 = 4;

/// A mean over some steps, each weighted by its records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The loss.
    pub loss: f64,
    /// The steps.
    pub steps: usize,
}

/// Returns the mean of the last tenth of the steps, at least of one.
#[must_use]
pub fn last_tenth(lines: &[Step]) -> Option<Mean> {
    mean(&lines[lines.len() - lines.len().div_ceil(10)..])
}

/// Why a run diverged: the mean loss of its last tenth is above its loss at the beginning by more
/// than `most`. The beginning is the first step, before anything was learnt, or more steps until
/// they have four records; the last tenth has as many at least. A run without two such parts is not
/// judged.
#[must_use]
pub fn divergence(lines: &[Step], most: f64) -> Option<String> {
    let begin = enough(lines.iter());
    let end = enough(lines.iter().rev()).max(lines.len().div_ceil(10));
    if begin + end > lines.len() {
        return None;
    }
    let (first, last) = (mean(&lines[..begin])?, mean(&lines[lines.len() - end..])?);
    // Written so that a mean that is not a number counts as risen.
    if last.loss - first.loss <= most {
        return None;
    }
    Some(format!(
        "the training diverged: the loss rose from {:.4} at the beginning to {:.4}, the mean of the \
         last {end} steps, by more than recipe.max_loss_rise, {most}; a lower recipe.learning_rate \
         may help",
        first.loss, last.loss
    ))
}

/// The number of steps that have [`FEWEST`] records together.
fn enough<'a>(steps: impl Iterator<Item = &'a Step>) -> usize {
    let mut records = 0;
    let few = steps.take_while(|step| {
        let more = records < FEWEST;
        records += weight(step);
        more
    });
    few.count().max(1)
}

/// Lines of earlier versions do not count their records.
fn weight(line: &Step) -> u64 {
    line.records.max(1)
}

fn mean(lines: &[Step]) -> Option<Mean> {
    let weights: u64 = lines.iter().map(weight).sum();
    let weighted = lines.iter().map(|line| line.loss * weight(line) as f64);
    (!lines.is_empty()).then_some(Mean {
        loss: weighted.sum::<f64>() / weights as f64,
        steps: lines.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(losses: impl IntoIterator<Item = f64>) -> Vec<Step> {
        let line = |(at, loss): (usize, f64)| Step {
            step: at as u64 + 1,
            loss,
            records: 8,
            ..Step::default()
        };
        losses.into_iter().enumerate().map(line).collect()
    }

    #[test]
    fn the_last_tenth_is_a_mean_by_records() {
        let mut run = lines((0..20).map(f64::from));
        assert_eq!(
            last_tenth(&run),
            Some(Mean {
                loss: 18.5,
                steps: 2
            })
        );
        // A last window of 2 records counts a quarter of a whole one.
        run[19].records = 2;
        assert_eq!(
            last_tenth(&run),
            Some(Mean {
                loss: 18.2,
                steps: 2
            })
        );
        assert_eq!(
            last_tenth(&run[..1]),
            Some(Mean {
                loss: 0.0,
                steps: 1
            })
        );
        assert_eq!(last_tenth(&[]), None);
    }

    #[test]
    fn a_run_diverged_if_its_ends_say_so() {
        let table: [(&[f64], f64, bool); 9] = [
            (&[3.96, 5.0, 9.0, 10.58], 1.0, true),
            // It diverged at the second step.
            (&[3.96, 11.0, 10.9, 10.7, 10.6, 10.58], 1.0, true),
            (&[4.0, 3.0, 2.0, 1.0], 1.0, false),
            // As much as is allowed, and more.
            (&[2.0, 2.5, 3.0], 1.0, false),
            (&[2.0, 2.5, 3.1], 1.0, true),
            (&[2.0, 2.5, 3.1], 5.0, false),
            (&[2.0, 2.1], 0.0, true),
            (&[9.0], 0.0, false),
            (&[], 0.0, false),
        ];
        for (losses, most, diverged) in table {
            let says = divergence(&lines(losses.iter().copied()), most);
            assert_eq!(says.is_some(), diverged, "{losses:?} {most}: {says:?}");
        }
        let long = (0..100).map(|n| if n < 90 { 2.0 } else { 4.0 });
        let says = divergence(&lines(long), 1.0).unwrap();
        assert!(
            says.contains("from 2.0000 at the beginning to 4.0000, the mean of the last 10 steps"),
            "{says}"
        );
    }

    #[test]
    fn single_records_are_not_compared_one_by_one() {
        let mut run = lines([1.0, 5.0, 3.0, 3.0, 3.0, 2.0, 2.0, 5.0]);
        run.iter_mut().for_each(|line| line.records = 1);
        assert_eq!(divergence(&run, 1.0), None, "3 on both sides");
        run.iter_mut().skip(4).for_each(|line| line.loss = 4.5);
        assert!(divergence(&run, 1.0).is_some());
        assert_eq!(divergence(&run[..7], 0.0), None, "too few records");
    }
}
