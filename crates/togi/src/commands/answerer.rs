//! Gets answers from inference, or in this process from a base's folder. Requests and responses are
//! the same.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use togi_inference::Local;
use togi_proto::inference::v1::generate_response::Event;
use togi_proto::inference::v1::{
    FinishReason, Finished, GenerateRequest, GenerateResponse, Started,
};

use crate::client::Clients;
use crate::commands::sampling::Sampling;
use crate::error::{Error, Result};
use crate::local;
use crate::local::named::{self, Named};
use crate::progress::seconds;
use crate::session::Session;
use crate::table::shorten;

/// A source of answers.
pub enum Answerer {
    /// The service, and the adapter's name there.
    Service(Clients, String),
    /// This process.
    Local(Box<Local>),
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its first message: the generation and the seed.
    pub started: Started,
    /// Its last message: tokens, time, and why it ended.
    pub finished: Finished,
}

type Responses =
    Pin<Box<dyn Stream<Item = std::result::Result<GenerateResponse, tonic::Status>> + Send>>;

impl Answerer {
    /// Returns this process with the base's folder loaded, if the flags name one, and inference
    /// otherwise.
    ///
    /// # Errors
    /// The base or the adapter is missing or cannot be used.
    pub async fn of(sampling: &Sampling, session: &Session) -> Result<Self> {
        let Some(folder) = sampling.base.clone() else {
            let adapter = named::at_services(&sampling.adapter, session).await?;
            return Ok(Self::Service(session.clients.clone(), adapter));
        };
        let device = session.settings.device;
        let precision = sampling.precision.unwrap_or(togi_model::Precision::F32);
        let adapter = match sampling.adapter.as_str() {
            "" => None,
            name => Some(Named::find(name.as_ref(), session).await?),
        };
        local::on_thread(move || {
            let base = local::base(&folder, device, precision)?;
            let lora = adapter.map(|adapter| adapter.lora(&base)).transpose()?;
            let base = Local::new(&folder, base, device).map_err(togi_runtime::Error::from)?;
            let base = match lora {
                None => base,
                Some(lora) => base
                    .with_adapter(&lora)
                    .map_err(togi_runtime::Error::from)?,
            };
            Ok(Self::Local(Box::new(base)))
        })
        .await
    }

    /// Streams an answer and passes every message to `seen`.
    ///
    /// # Errors
    /// The service's, this process's in its place, or `seen`'s.
    pub async fn answer(
        &self,
        request: GenerateRequest,
        seen: impl FnMut(&GenerateResponse) -> Result<()>,
    ) -> Result<Answer> {
        let answers = self.answers(request, seen).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    /// [`Answerer::answer`] for a request of several answers, in their order.
    async fn answers(
        &self,
        request: GenerateRequest,
        mut seen: impl FnMut(&GenerateResponse) -> Result<()>,
    ) -> Result<Vec<Answer>> {
        let mut stream = self.stream(request).await?;
        let (mut start, mut answers) = (Started::default(), Vec::new());
        while let Some(response) = stream.next().await {
            let response = response?;
            seen(&response)?;
            let choice = response.choice as usize;
            if answers.len() <= choice {
                answers.resize(choice + 1, Answer::default());
            }
            let answer = &mut answers[choice];
            match response.event {
                Some(Event::Started(started)) => start = started,
                Some(Event::Piece(piece)) => answer.text.push_str(&piece.text),
                Some(Event::Finished(finished)) => answer.finished = finished,
                Some(Event::PromptLogprobs(_)) | None => {}
            }
        }
        for (answer, choice) in answers.iter_mut().zip(0u64..) {
            answer.started = Started {
                seed: start.seed.wrapping_add(choice),
                ..start.clone()
            };
        }
        Ok(answers)
    }

    /// Prints an answer on standard output as it comes, then its cost on standard error; several
    /// answers one after the other when all have ended. As JSON, prints every message as a line.
    ///
    /// # Errors
    /// As [`Answerer::answer`], or standard output's.
    pub async fn print(
        &self,
        session: &Session,
        request: GenerateRequest,
        sampling: &Sampling,
    ) -> Result<()> {
        let output = &session.output;
        let options = request.options.as_ref();
        let is_one = options.and_then(|options| options.n).is_none_or(|n| n <= 1);
        let answers = self
            .answers(request, |response| match &response.event {
                _ if output.is_json() => output.json(response),
                Some(Event::Piece(piece)) if is_one => output.text(&piece.text),
                _ => Ok(()),
            })
            .await?;
        for answer in answers {
            if !output.is_json() {
                output.line(if is_one { "" } else { &answer.text })?;
            }
            output.say(output.dim(&usage(&answer, sampling)));
        }
        Ok(())
    }

    async fn stream(&self, mut request: GenerateRequest) -> Result<Responses> {
        match self {
            Self::Service(clients, adapter) => {
                request.adapter.clone_from(adapter);
                let mut client = clients.inference().await?;
                Ok(Box::pin(client.generate(request).await?.into_inner()))
            }
            Self::Local(base) => {
                let answers = togi_inference::ask(base, request).await;
                Ok(answers.map_err(|error| Error::from(tonic::Status::from(error)))?)
            }
        }
    }
}

/// Writes an answer's generation, tokens, seed and time for people.
fn usage(answer: &Answer, sampling: &Sampling) -> String {
    let by = match answer.started.generation.as_str() {
        "" => "base".to_owned(),
        generation => shorten(generation, 13),
    };
    let reason = match answer.finished.reason() {
        FinishReason::Eos => "",
        FinishReason::Stop => ", ended by a stop text",
        FinishReason::Length => ", cut at its longest",
        FinishReason::Deadline => ", ended by its deadline",
        FinishReason::Unspecified => ", ended for no stated reason",
    };
    let finished = &answer.finished;
    let tokens = format!(
        "{} + {} tokens",
        finished.prompt_tokens, finished.completion_tokens
    );
    let seed = if sampling.greedy || sampling.temperature == Some(0.0) {
        String::new()
    } else {
        format!(", seed {}", answer.started.seed)
    };
    format!(
        "[{by}: {tokens}{seed}, {}{reason}]",
        seconds(finished.seconds)
    )
}
