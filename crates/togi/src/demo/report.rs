//! The demonstration's report, as data and for people.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::embedded::Question;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::progress::{mebibytes, seconds};
use crate::score::{Score, is_right};
use crate::table::{Table, shorten};

/// The number of questions that are printed.
const SHOWN: usize = 5;
/// The number of events in a row.
const EVENTS_IN_ROW: usize = 4;
/// Longer answers are shortened.
const ANSWER_COLUMNS: usize = 60;

/// The demonstration's findings.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Questions about facts of the base's training texts that no record contains, answered by the
    /// base and by the first generation.
    pub answers: Vec<Answered>,
    /// Questions about the new facts, answered by the first and the second generation.
    pub news: Vec<Answered>,
    /// The generations, in the order of their making.
    pub generations: Vec<String>,
    /// How often each event was seen.
    pub events: BTreeMap<String, u64>,
    /// Objects in the store at the end.
    pub objects: u64,
    /// Their size.
    pub bytes: u64,
    /// The duration, including start and stop of the services.
    pub seconds: f64,
}

/// A question and two answers to it.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    /// What was asked.
    pub question: String,
    /// The right answer.
    pub expected: String,
    /// "held-out", "paraphrase" or "new".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The answer before the training.
    pub before: String,
    /// The answer after it.
    pub after: String,
}

/// Scores of two answerers on the same questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scores {
    /// Before the training.
    pub before: Score,
    /// After it.
    pub after: Score,
}

/// Combines questions and answers.
pub(super) fn side_by_side(
    questions: &[Question],
    before: Vec<String>,
    after: Vec<String>,
) -> Vec<Answered> {
    let answers = before.into_iter().zip(after);
    let pairs = questions.iter().zip(answers);
    pairs
        .map(|(question, (before, after))| Answered {
            question: question.instruction.clone(),
            expected: question.output.clone(),
            kind: question.kind.clone(),
            before,
            after,
        })
        .collect()
}

fn scores<'a>(answers: impl Iterator<Item = &'a Answered>) -> Scores {
    let mut scores = Scores::default();
    for answered in answers {
        scores
            .before
            .count(is_right(&answered.before, &answered.expected));
        scores
            .after
            .count(is_right(&answered.after, &answered.expected));
    }
    scores
}

impl Report {
    /// Returns the scores on the held-out questions in the records' wording.
    pub fn held_out(&self) -> Scores {
        scores(
            self.answers
                .iter()
                .filter(|answered| answered.kind != "paraphrase"),
        )
    }

    /// Returns the scores on the held-out questions in another wording.
    pub fn paraphrased(&self) -> Scores {
        scores(
            self.answers
                .iter()
                .filter(|answered| answered.kind == "paraphrase"),
        )
    }

    /// Returns the scores on the new facts, of the first and the second generation.
    pub fn new_facts(&self) -> Scores {
        scores(self.news.iter())
    }

    /// Checks the bars: the base answers at most one in ten held-out questions and the adapter at
    /// least eight; the first generation knows at most one in ten new facts and the second at least
    /// eight.
    ///
    /// # Errors
    /// [`Error::Failed`] naming the first bar that does not hold.
    pub fn check(&self) -> Result<()> {
        let held_out = self.held_out();
        let news = self.new_facts();
        let bars = [
            (
                "the base knows held-out answers",
                held_out.before,
                held_out.before.is_at_most(1),
                "at most 1 in 10",
            ),
            (
                "the adapter misses held-out answers",
                held_out.after,
                held_out.after.is_at_least(8),
                "at least 8 in 10",
            ),
            (
                "the first generation knows new facts",
                news.before,
                news.before.is_at_most(1),
                "at most 1 in 10",
            ),
            (
                "the second generation misses new facts",
                news.after,
                news.after.is_at_least(8),
                "at least 8 in 10",
            ),
        ];
        match bars.into_iter().find(|(_, _, holds, _)| !holds) {
            Some((what, score, _, bar)) => {
                Err(Error::Failed(format!("{what}: {score}, the bar is {bar}")))
            }
            None => Ok(()),
        }
    }

    /// Writes the report for people.
    pub fn lines(&self, output: &Output) -> Vec<String> {
        let held_out = self.held_out();
        let mut lines = vec![String::new()];
        let shown: Vec<&Answered> = self
            .answers
            .iter()
            .filter(|answered| answered.kind != "paraphrase")
            .take(SHOWN)
            .collect();
        lines.push(output.bold(&format!(
            "{} of {} held-out questions, asked greedily",
            shown.len(),
            held_out.after.asked
        )));
        lines.extend(examples(output, &shown, ["base", "adapter"]));
        let news: Vec<&Answered> = self.news.iter().collect();
        lines.push(output.bold("New facts, before and after the retraining by policy"));
        lines.extend(examples(output, &news, ["first", "second"]));
        lines.push(output.bold("Right answers (equal after NFKC)"));
        lines.extend(self.score_table());
        lines.push(String::new());
        lines.push(output.bold("What happened"));
        let events: Vec<String> = self
            .events
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let mut table = Table::default();
        for (row, some) in events.chunks(EVENTS_IN_ROW).enumerate() {
            table.row([
                if row == 0 { "  events" } else { "" }.to_owned(),
                some.join(", "),
            ]);
        }
        table.row([
            "  objects".to_owned(),
            format!("{} with {}", self.objects, mebibytes(self.bytes)),
        ]);
        let generations: Vec<String> = self
            .generations
            .iter()
            .map(|digest| shorten(digest, 17))
            .collect();
        table.row(["  generations".to_owned(), generations.join(", ")]);
        table.row(["  time".to_owned(), seconds(self.seconds)]);
        lines.extend(table.lines());
        lines
    }

    fn score_table(&self) -> Vec<String> {
        let mut table = Table::default();
        let Scores { before, after } = self.held_out();
        table.row([
            "  held-out questions".into(),
            format!("base {before}"),
            format!("adapter {after}"),
        ]);
        let Scores { before, after } = self.paraphrased();
        table.row([
            "  the same, paraphrased".into(),
            format!("base {before}"),
            format!("adapter {after}"),
        ]);
        let Scores { before, after } = self.new_facts();
        table.row([
            "  new facts".into(),
            format!("first generation {before}"),
            format!("second generation {after}"),
        ]);
        table.lines()
    }
}

fn examples(output: &Output, answers: &[&Answered], names: [&str; 2]) -> Vec<String> {
    let mut lines = Vec::new();
    for answered in answers {
        lines.push(format!("  {}", answered.question));
        for (name, answer) in names.iter().zip([&answered.before, &answered.after]) {
            let mark = if is_right(answer, &answered.expected) {
                output.green("✓")
            } else {
                output.red("✗")
            };
            let answer = shorten(&answer.trim().replace('\n', " "), ANSWER_COLUMNS);
            lines.push(format!("    {mark} {name:<8} {answer}"));
        }
    }
    lines.push(String::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(kind: &str, before: bool, after: bool) -> Answered {
        let say = |right| {
            if right {
                "はい".to_owned()
            } else {
                "いいえ".to_owned()
            }
        };
        Answered {
            question: "か？".into(),
            expected: "はい".into(),
            kind: kind.into(),
            before: say(before),
            after: say(after),
        }
    }

    #[test]
    fn bars_are_checked_in_their_order() {
        let mut report = Report {
            answers: vec![
                answered("held-out", false, true),
                answered("paraphrase", false, false),
            ],
            news: vec![answered("", false, true)],
            ..Report::default()
        };
        report.check().unwrap();
        assert_eq!(report.paraphrased().after, Score { right: 0, asked: 1 });
        report.news[0].after.clear();
        assert!(
            report
                .check()
                .unwrap_err()
                .to_string()
                .contains("second generation")
        );
        report.answers[0].before = "はい".into();
        assert!(
            report
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("the base knows")
        );
        assert!(
            Report::default().check().is_err(),
            "nothing asked is nothing shown"
        );
    }
}
