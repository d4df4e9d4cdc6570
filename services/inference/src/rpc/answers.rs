//! From the engine's events to the messages of a `Generate` stream.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use togi_model::logprobs::Logprobs;
use togi_proto::inference::v1 as proto;
use tonic::Status;

use crate::event::{Event, Events, Finished, Kind, Reason};

/// An answer as a gRPC client receives it.
pub type Answers = Pin<Box<dyn Stream<Item = Result<proto::GenerateResponse, Status>> + Send>>;

/// Turns events into messages, and the error of a broken answer into a status.
pub(crate) fn stream(events: Events) -> Answers {
    Box::pin(events.map(|event| event.map(response).map_err(Status::from)))
}

fn response(event: Event) -> proto::GenerateResponse {
    use proto::generate_response::Event as Message;
    let message = match event.kind {
        Kind::Started(started) => Message::Started(proto::Started {
            generation: started.generation.map_or_else(String::new, String::from),
            prompt_tokens: count(started.prompt_tokens),
            seed: started.seed,
        }),
        Kind::PromptLogprobs(tokens) => Message::PromptLogprobs(proto::PromptLogprobs {
            tokens: tokens.into_iter().map(logprobs).collect(),
        }),
        Kind::Piece(piece) => Message::Piece(proto::Piece {
            text: piece.text,
            token_ids: vec![piece.id],
            logprobs: piece.logprobs.into_iter().map(logprobs).collect(),
        }),
        Kind::Finished(end) => Message::Finished(finished(&end)),
    };
    proto::GenerateResponse {
        event: Some(message),
        choice: event.choice,
    }
}

fn logprobs(logprobs: Logprobs) -> proto::TokenLogprobs {
    let top = logprobs.best.iter().map(|likely| proto::TopLogprob {
        token_id: likely.id,
        logprob: likely.logprob,
    });
    proto::TokenLogprobs {
        token_id: logprobs.id,
        logprob: logprobs.logprob,
        top: top.collect(),
    }
}

fn finished(finished: &Finished) -> proto::Finished {
    let reason = match finished.reason {
        Reason::Eos => proto::FinishReason::Eos,
        Reason::Stop => proto::FinishReason::Stop,
        Reason::Length => proto::FinishReason::Length,
        Reason::Deadline => proto::FinishReason::Deadline,
    };
    proto::Finished {
        reason: reason.into(),
        prompt_tokens: count(finished.prompt_tokens),
        completion_tokens: count(finished.completion_tokens),
        seconds_to_first_token: finished.to_first_token.as_secs_f64(),
        seconds: finished.total.as_secs_f64(),
        cached_prompt_tokens: count(finished.cached_tokens),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
