//! `togi datasets`: lists and shows data sets.

use clap::{Args, Subcommand};
use togi_proto::dataprep::v1::{
    Dataset, GetDatasetRequest, ListDatasetsRequest, ListDatasetsResponse,
};

use crate::client::{PAGE_SIZE, present};
use crate::error::Result;
use crate::session::Session;
use crate::table::{Table, shorten};
use crate::{table, when};

/// What to do with data sets.
#[derive(Debug, Subcommand)]
pub enum Datasets {
    /// Lists data sets by name
    #[command(
        before_help = "Examples:\n  togi datasets list\n  togi datasets list -o json | jq '.datasets[].name'"
    )]
    List,
    /// Shows a data set
    #[command(before_help = "Examples:\n  togi datasets show mine")]
    Show(One),
}

/// Names a data set.
#[derive(Debug, Args)]
pub struct One {
    /// Its name, for the newest revision, or its digest
    pub dataset: String,
}

impl Datasets {
    /// Runs the command.
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List => list(session).await,
            Self::Show(one) => {
                let request = GetDatasetRequest {
                    dataset: one.dataset,
                };
                let answer = session
                    .clients
                    .data_prep()
                    .await?
                    .get_dataset(request)
                    .await?
                    .into_inner();
                session
                    .output
                    .one(&present(answer.dataset, "dataset")?, fields)
            }
        }
    }
}

async fn list(session: &Session) -> Result<()> {
    let mut client = session.clients.data_prep().await?;
    let mut all = ListDatasetsResponse::default();
    loop {
        let request = ListDatasetsRequest {
            page_size: PAGE_SIZE,
            page_token: all.next_page_token,
        };
        let page = client.list_datasets(request).await?.into_inner();
        all.datasets.extend(page.datasets);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            break;
        }
    }
    if all.datasets.is_empty() {
        session
            .output
            .say("no data sets yet; `togi prepare` makes one");
    }
    session.output.one(&all, |all| {
        let mut table = Table::new(&[
            "NAME", "REVISION", "ROWS", "TOKENS", "REJECTED", "LEARNS", "AGE", "DIGEST",
        ]);
        for dataset in &all.datasets {
            table.row([
                dataset.name.clone(),
                dataset.revision.to_string(),
                dataset.rows.to_string(),
                dataset.tokens.to_string(),
                dataset.rejected.to_string(),
                dataset.learn.clone(),
                when::age(dataset.create_time.as_ref()),
                shorten(&dataset.digest, 17),
            ]);
        }
        table.lines()
    })
}

/// Writes a data set for people.
pub(crate) fn fields(dataset: &Dataset) -> Vec<String> {
    table::fields(&[
        ("name", dataset.name.clone()),
        ("revision", dataset.revision.to_string()),
        ("digest", dataset.digest.clone()),
        ("read as", dataset.read_as.clone()),
        ("records read", dataset.records_read.to_string()),
        ("rows", dataset.rows.to_string()),
        ("validation rows", dataset.validation_rows.to_string()),
        ("rejected", dataset.rejected.to_string()),
        ("tokens", dataset.tokens.to_string()),
        ("max length", dataset.max_length.to_string()),
        ("learns", dataset.learn.clone()),
        ("tokenizer", dataset.tokenizer_digest.clone()),
        ("template", dataset.template_digest.clone()),
        ("named", when::local(dataset.create_time.as_ref())),
    ])
}
