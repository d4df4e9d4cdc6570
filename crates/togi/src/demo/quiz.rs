//! Asks the base or an adapter questions, with the options of scoring.

use crate::commands::answerer::Answerer;
use crate::commands::sampling::Sampling;
use crate::embedded::Question;
use crate::error::Result;
use crate::progress::Unit;
use crate::session::Session;

/// Longer than any right answer.
const MAX_NEW_TOKENS: u32 = 32;

/// Asks every question and returns the answers in their order.
pub(super) async fn ask(
    session: &Session,
    what: &str,
    adapter: &str,
    questions: &[Question],
) -> Result<Vec<String>> {
    let sampling = Sampling::exact(adapter, MAX_NEW_TOKENS);
    let answerer = Answerer::of(&sampling, session).await?;
    let mut progress = session.output.progress(what);
    progress.set_length(questions.len() as u64, Unit::Count);
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        progress.set(answers.len() as u64, &question.instruction);
        let request = sampling.instruction(&question.instruction, &question.input);
        answers.push(answerer.answer(request, |_| Ok(())).await?.text);
    }
    progress.finish();
    Ok(answers)
}
