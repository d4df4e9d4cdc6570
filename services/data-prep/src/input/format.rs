//! The words of a request's format: how a file holds its records, or the form of the records.

use togi_tokens::form::Form;

/// How a file holds its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// One JSON array of objects.
    Json,
    /// One JSON object a line; blank lines are skipped.
    JsonLines,
    /// A Parquet table.
    Parquet,
    /// Cells separated by commas (or semicolons) below a header, as RFC 4180 quotes them.
    Csv,
    /// Cells separated by tabs below a header.
    Tsv,
}

/// A word of a request's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// How the file holds its records.
    File(Format),
    /// The form of its records.
    Records(Form),
}

/// Every word of a request's format.
pub const WORDS: [&str; 10] = [
    "json",
    "jsonl",
    "parquet",
    "csv",
    "tsv",
    "alpaca",
    "dolly",
    "messages",
    "sharegpt",
    "prompt-completion",
];

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [
        Self::Json,
        Self::JsonLines,
        Self::Parquet,
        Self::Csv,
        Self::Tsv,
    ];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::JsonLines => "jsonl",
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
        }
    }

    /// Says where a record of this number is.
    #[must_use]
    pub fn place(self, number: u64) -> String {
        match self {
            Self::JsonLines | Self::Csv | Self::Tsv => format!("line {number}"),
            Self::Json => format!("element {number}"),
            Self::Parquet => format!("row {number}"),
        }
    }

    /// The name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Json => "JSON array",
            Self::JsonLines => "JSON Lines",
            Self::Parquet => "Parquet",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
        }
    }
}

impl Word {
    /// Reads a word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let format = Format::ALL.into_iter().find(|format| format.name() == name);
        let form = || Form::from_name(name).map(Self::Records);
        format.map(Self::File).or_else(form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_a_format_or_a_form() {
        let formats = Format::ALL.map(Format::name);
        let names: Vec<&str> = formats
            .into_iter()
            .chain(Form::ALL.map(Form::name))
            .collect();
        assert_eq!(names, WORDS);
        assert!(WORDS.iter().all(|word| Word::from_name(word).is_some()));
        assert_eq!(Word::from_name("xlsx"), None);
    }
}
