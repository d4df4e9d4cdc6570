//! Who answers: inference, or this process over a base's folder. What is asked and what is heard are the same.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use togi_inference::Local;
use togi_proto::inference::v1::generate_response::Event;
use togi_proto::inference::v1::{Finished, GenerateRequest, GenerateResponse, Started};

use crate::client::Clients;
use crate::commands::sampling::Sampling;
use crate::error::{Error, Result};
use crate::local;
use crate::session::Session;

/// Whoever answers.
pub enum Answerer {
    /// The service.
    Service(Clients),
    /// This process.
    Local(Box<Local>),
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// What answered.
    pub started: Started,
    /// Why it ended.
    pub finished: Finished,
}

type Responses =
    Pin<Box<dyn Stream<Item = std::result::Result<GenerateResponse, tonic::Status>> + Send>>;

impl Answerer {
    /// Returns whom the flags ask: with a base's folder this process, which reads it now.
    ///
    /// # Errors
    /// A base or adapter that is not there or cannot be used.
    pub async fn of(sampling: &Sampling, session: &Session) -> Result<Self> {
        let Some(folder) = sampling.base.clone() else {
            return Ok(Self::Service(session.clients.clone()));
        };
        let device = session.settings.device;
        let precision = sampling.precision.unwrap_or(togi_model::Precision::F32);
        let adapter = sampling.adapter.clone();
        local::on_thread(move || {
            let base = local::base(&folder, device, precision)?;
            let base = Local::new(&folder, base, device).map_err(togi_runtime::Error::from)?;
            let base = match adapter.as_str() {
                "" => base,
                adapter => {
                    let lora = local::adapter(adapter.as_ref(), base.config())?;
                    base.with_adapter(&lora)
                        .map_err(togi_runtime::Error::from)?
                }
            };
            Ok(Self::Local(Box::new(base)))
        })
        .await
    }

    /// Streams an answer; every message is given to `seen` as it comes.
    ///
    /// # Errors
    /// What the service, or this process in its place, says; whatever `seen` says.
    pub async fn answer(
        &self,
        request: GenerateRequest,
        mut seen: impl FnMut(&GenerateResponse) -> Result<()>,
    ) -> Result<Answer> {
        let mut stream = self.stream(request).await?;
        let mut answer = Answer::default();
        while let Some(response) = stream.next().await {
            let response = response?;
            seen(&response)?;
            match response.event {
                Some(Event::Started(started)) => answer.started = started,
                Some(Event::Piece(piece)) => answer.text.push_str(&piece.text),
                Some(Event::Finished(finished)) => answer.finished = finished,
                None => {}
            }
        }
        Ok(answer)
    }

    async fn stream(&self, request: GenerateRequest) -> Result<Responses> {
        match self {
            Self::Service(clients) => {
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
