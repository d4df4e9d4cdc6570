//! What a run's losses say together: their mean at the end, and whether they rose. A single step's
//! loss is that of a few records, and the last window of an epoch may have only one.

use crate::learn::step::Step;

/// Fewest steps at each end whose means are compared; of a shorter run, the halves are.
const FEWEST: usize = 4;

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

/// Why a run diverged: the mean loss of its last tenth is above that of its first by more than
/// `most`. Each tenth has at least four steps, or half of a shorter run; a run of fewer than four
/// steps is not judged.
#[must_use]
pub fn divergence(lines: &[Step], most: f64) -> Option<String> {
    if lines.len() < FEWEST {
        return None;
    }
    let size = lines.len().div_ceil(10).max(FEWEST).min(lines.len() / 2);
    let (first, last) = (mean(&lines[..size])?, mean(&lines[lines.len() - size..])?);
    // Written so that a mean that is not a number counts as risen.
    if last.loss - first.loss <= most {
        return None;
    }
    Some(format!(
        "the training diverged: the mean loss rose from {:.4} in the first {size} steps to {:.4} in \
         the last {size}, by more than recipe.max_loss_rise, {most}; a lower recipe.learning_rate \
         may help",
        first.loss, last.loss
    ))
}

fn mean(lines: &[Step]) -> Option<Mean> {
    // Lines of earlier versions do not count their records.
    let weight = |line: &Step| line.records.max(1) as f64;
    let weights: f64 = lines.iter().map(weight).sum();
    let sum: f64 = lines.iter().map(|line| line.loss * weight(line)).sum();
    (!lines.is_empty()).then_some(Mean {
        loss: sum / weights,
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
        let risen = |losses: &[f64], most| divergence(&lines(losses.iter().copied()), most);
        let table: [(&[f64], f64, bool); 9] = [
            (&[3.96, 5.0, 9.0, 10.58], 1.0, true),
            (&[4.0, 3.0, 2.0, 1.0], 1.0, false),
            // Within what is allowed, and just above it.
            (&[2.0, 2.0, 2.9, 3.0], 1.0, false),
            (&[2.0, 2.0, 3.1, 3.0], 1.0, true),
            (&[2.0, 2.0, 3.1, 3.0], 5.0, false),
            (&[2.0, 2.0, 2.1, 2.1], 0.0, true),
            // One bad window among eight is noise.
            (&[2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 5.0], 1.0, false),
            (&[1.0, 9.0, 9.0], 1.0, false),
            (&[], 1.0, false),
        ];
        for (losses, most, diverged) in table {
            assert_eq!(risen(losses, most).is_some(), diverged, "{losses:?} {most}");
        }
        let long: Vec<f64> = (0..100).map(|n| if n < 90 { 2.0 } else { 4.0 }).collect();
        let says = risen(&long, 1.0).unwrap();
        assert!(
            says.contains("from 2.0000 in the first 10 steps to 4.0000 in the last 10"),
            "{says}"
        );
    }
}
