//! Counts right answers, by the rule of a policy's gate.

pub use togi_trainer::gate::questions::is_right;

/// Right answers out of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Score {
    /// How many were right.
    pub right: usize,
    /// How many were asked.
    pub asked: usize,
}

impl Score {
    /// Counts one answer.
    pub fn count(&mut self, is_right: bool) {
        self.asked += 1;
        self.right += usize::from(is_right);
    }

    /// Whether at least this many of ten were right; false where nothing was asked.
    pub fn is_at_least(&self, of_ten: usize) -> bool {
        self.asked > 0 && self.right * 10 >= self.asked * of_ten
    }

    /// Whether at most this many of ten were right.
    pub fn is_at_most(&self, of_ten: usize) -> bool {
        self.right * 10 <= self.asked * of_ten
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.right, self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_tenths() {
        let score = Score {
            right: 27,
            asked: 33,
        };
        assert!(score.is_at_least(8));
        assert!(
            !Score {
                right: 26,
                asked: 33
            }
            .is_at_least(8)
        );
        assert!(
            Score {
                right: 3,
                asked: 33
            }
            .is_at_most(1)
        );
        assert!(
            !Score {
                right: 4,
                asked: 33
            }
            .is_at_most(1)
        );
        assert!(!Score::default().is_at_least(0));
        assert_eq!(score.to_string(), "27/33");
    }
}
