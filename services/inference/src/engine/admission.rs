//! Where a question becomes a stream: it is checked, takes a place, is cut into tokens and handed to the engine. A
//! replica has one [`Admission`], and so has [`crate::local::Local`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, stream};
use togi_model::Engine;
use togi_proto::inference::v1 as proto;
use togi_tokens::Tokenizer;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::Span;

use crate::engine::door::Door;
use crate::engine::load::Permit;
use crate::engine::request::Question;
use crate::engine::sequence::{self, Event, Finished, Job, Reason};
use crate::error::{Error, Result};
use crate::semconv;
use crate::served_adapter::ServedAdapter;

/// An answer as a client hears it.
pub type Answers =
    Pin<Box<dyn Stream<Item = std::result::Result<proto::GenerateResponse, Status>> + Send>>;

/// What answers need that differs neither by question nor by adapter.
pub(crate) struct Admission {
    pub(crate) base_name: String,
    pub(crate) network: Arc<Engine>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) door: Arc<Door>,
    pub(crate) max_prompt_bytes: usize,
}

/// A question that is valid and has its place.
pub(crate) struct Admitted {
    pub(crate) question: Question,
    permit: Permit,
    arrived: Instant,
}

impl Admission {
    /// Checks a request and takes a place: the cheap checks come first, the place before what costs.
    pub(crate) fn admit(
        &self,
        request: proto::GenerateRequest,
        arrived: Instant,
    ) -> Result<Admitted> {
        let question = Question::from_request(request, self.max_prompt_bytes)?;
        let permit = self.door.enter()?;
        Ok(Admitted {
            question,
            permit,
            arrived,
        })
    }

    /// Everything before the first token.
    pub(crate) async fn answer(
        &self,
        admitted: Admitted,
        generation: Option<Arc<ServedAdapter>>,
    ) -> Result<Answers> {
        let Admitted {
            question,
            permit,
            arrived,
        } = admitted;
        let span = self.span(&question, generation.as_deref());
        let prompt = self.tokenize(&question).await?;
        let max_positions = self.network.config().max_position_embeddings;
        let room = sequence::most_events(prompt.len(), &question.options, max_positions);
        let started = proto::Started {
            generation: generation
                .as_ref()
                .map_or_else(String::new, |g| g.digest().to_owned()),
            prompt_tokens: count(prompt.len()),
            seed: question.options.sampling.seed,
        };
        let (events, answer) = mpsc::channel(room);
        let options = question.options;
        self.door.submit(Job {
            prompt,
            options,
            generation,
            arrived,
            events,
            _permit: permit,
            span,
        })?;
        Ok(Box::pin(answers(started, answer)))
    }

    /// Tokenizes the prompt on a thread and checks that the model can read it and say a token after it.
    async fn tokenize(&self, question: &Question) -> Result<Vec<u32>> {
        let (tokenizer, text) = (self.tokenizer.clone(), question.prompt.clone());
        let encode = move || Tokenizer::encode(&tokenizer, &text);
        let prompt = tokio::task::spawn_blocking(encode)
            .await
            .map_err(|error| Error::Broken(format!("tokenizing ended: {error}")))?;
        let longest = self.network.config().max_position_embeddings;
        if prompt.len() >= longest {
            let tokens = prompt.len();
            let reason = format!(
                "the prompt has {tokens} tokens; the model's longest sequence is {longest}, the answer included"
            );
            return Err(Error::field(question.prompt_field, reason));
        }
        if prompt.is_empty() {
            return Err(Error::field(
                question.prompt_field,
                "the prompt has no tokens",
            ));
        }
        Ok(prompt)
    }

    fn span(&self, question: &Question, generation: Option<&ServedAdapter>) -> Span {
        let sampling = &question.options.sampling;
        let model = match question.answerer.name() {
            "" => self.base_name.as_str(),
            name => name,
        };
        tracing::info_span!(
            "text_completion",
            { semconv::GEN_AI_OPERATION_NAME } = semconv::TEXT_COMPLETION,
            { semconv::GEN_AI_PROVIDER_NAME } = semconv::PROVIDER,
            { semconv::GEN_AI_REQUEST_MODEL } = model,
            { semconv::GEN_AI_REQUEST_TEMPERATURE } = f64::from(sampling.temperature),
            { semconv::GEN_AI_REQUEST_TOP_P } = f64::from(sampling.top_p),
            { semconv::GEN_AI_REQUEST_TOP_K } = sampling.top_k,
            { semconv::GEN_AI_REQUEST_MAX_TOKENS } = sampling.max_new_tokens,
            { semconv::GEN_AI_REQUEST_SEED } = sampling.seed,
            { semconv::GEN_AI_RESPONSE_MODEL } =
                generation.map_or(self.base_name.as_str(), ServedAdapter::digest),
            { semconv::GEN_AI_USAGE_INPUT_TOKENS } = tracing::field::Empty,
            { semconv::GEN_AI_USAGE_OUTPUT_TOKENS } = tracing::field::Empty,
            { semconv::GEN_AI_RESPONSE_FINISH_REASONS } = tracing::field::Empty,
            { semconv::ERROR_TYPE } = tracing::field::Empty,
        )
    }
}

/// How far an answer's stream is.
enum Place {
    Start(proto::Started),
    Middle,
    End,
}

/// The answer as a client hears it. An answer that breaks off without its end is an error, never a short answer.
fn answers(
    started: proto::Started,
    events: mpsc::Receiver<Result<Event>>,
) -> impl Stream<Item = std::result::Result<proto::GenerateResponse, Status>> {
    stream::unfold(
        (Place::Start(started), events),
        |(place, mut events)| async move {
            match place {
                Place::Start(started) => {
                    let event = proto::generate_response::Event::Started(started);
                    Some((Ok(response(event)), (Place::Middle, events)))
                }
                Place::Middle => match events.recv().await {
                    Some(Ok(Event::Piece(piece))) => {
                        let piece = proto::Piece {
                            text: piece.text,
                            token_ids: piece.ids,
                        };
                        let event = proto::generate_response::Event::Piece(piece);
                        Some((Ok(response(event)), (Place::Middle, events)))
                    }
                    Some(Ok(Event::Finished(finished))) => {
                        let event =
                            proto::generate_response::Event::Finished(end_to_proto(&finished));
                        Some((Ok(response(event)), (Place::End, events)))
                    }
                    Some(Err(error)) => Some((Err(error.into()), (Place::End, events))),
                    None => {
                        let error = Error::Broken("the engine ended before the answer".into());
                        Some((Err(error.into()), (Place::End, events)))
                    }
                },
                Place::End => None,
            }
        },
    )
}

fn response(event: proto::generate_response::Event) -> proto::GenerateResponse {
    proto::GenerateResponse { event: Some(event) }
}

fn end_to_proto(finished: &Finished) -> proto::Finished {
    let reason = match finished.reason {
        Reason::Eos => proto::FinishReason::Eos,
        Reason::Stop => proto::FinishReason::Stop,
        Reason::Length => proto::FinishReason::Length,
    };
    proto::Finished {
        reason: reason.into(),
        prompt_tokens: count(finished.prompt_tokens),
        completion_tokens: count(finished.completion_tokens),
        seconds_to_first_token: finished.to_first_token.as_secs_f64(),
        seconds: finished.total.as_secs_f64(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
