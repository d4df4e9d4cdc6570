//! How the files of a source were read: the forms of their records, in words, and what to do about
//! a file without one.

use std::collections::{BTreeMap, BTreeSet};

use togi_tokens::form::Form;

use crate::error::forms;
use crate::input::{Format, Records};
use crate::splits::files;

/// How the files of a source were read.
#[derive(Default)]
pub(crate) struct ReadAs {
    files: BTreeMap<(Form, Format), usize>,
    /// What to do about the first file that looks like no list of records.
    hint: Option<String>,
}

impl ReadAs {
    /// Adds a file that was read to its end.
    pub(crate) fn add(&mut self, records: &Records) {
        if let Some(form) = records.read_as() {
            *self.files.entry(form).or_default() += 1;
        }
        if self.hint.is_none() {
            self.hint = records.hint().map(str::to_owned);
        }
    }

    /// Names the forms: `ShareGPT (JSON Lines)`, with the number of files if there are several.
    pub(crate) fn words(&self) -> String {
        let several = self.files.values().sum::<usize>() > 1;
        let one = |(&(form, format), &count): (&(Form, Format), &usize)| {
            let (form, format) = (form.title(), format.title());
            if several {
                format!("{form} ({format}, {})", files(count))
            } else {
                format!("{form} ({format})")
            }
        };
        self.files.iter().map(one).collect::<Vec<_>>().join(" and ")
    }

    /// Says the forms, and what becomes of the columns of the only one.
    pub(crate) fn sentence(&self) -> String {
        let forms: BTreeSet<Form> = self.files.keys().map(|&(form, _)| form).collect();
        match forms.first() {
            None => String::new(),
            Some(only) if forms.len() == 1 && !only.mapping().is_empty() => {
                format!("read as {}: {}", self.words(), only.mapping())
            }
            Some(_) => format!("read as {}", self.words()),
        }
    }

    /// What to do if every record was rejected, as a further sentence.
    pub(crate) fn remedy(&self) -> String {
        match (&self.hint, self.files.is_empty()) {
            (Some(hint), _) => format!(". To mend it: {hint}"),
            (None, true) => format!(". {}", forms()),
            (None, false) => String::new(),
        }
    }
}

/// Says how one file was read, as a sentence; empty if no record of it has a form.
#[must_use]
pub fn sentence(records: &Records) -> String {
    let mut read_as = ReadAs::default();
    read_as.add(records);
    read_as.sentence()
}
