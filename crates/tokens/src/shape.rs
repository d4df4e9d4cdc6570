//! How the records of one file are read: in a form that the request says, or that was detected from
//! the content, with the source's names of the columns.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::chat;
use crate::error::{Error, Result};
use crate::form::Form;
use crate::record::json::{self, Column};
use crate::record::{Columns, Fault, Record, Reject};

/// What a request says about the form of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The form; detected from the content if not set.
    pub form: Option<Form>,
    /// The source's names of our columns. With a name of another kind than our own and without a
    /// form, records have our columns under these names.
    pub columns: Columns,
}

/// How the records of one file are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    form: Form,
    columns: Columns,
    others: Others,
}

/// What a record of another form does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// It is rejected as any record that lacks a column: the request says the form.
    Rejected,
    /// It refuses the file: which form is meant is not clear.
    Refused,
}

impl Asked {
    /// Returns the shape that the request says, or nothing if it is to be detected.
    ///
    /// # Errors
    /// [`Error::Setting`] of `columns` if the form has no column of that kind, or two with one
    /// name.
    pub fn shape(&self) -> Result<Option<Shape>> {
        let renamed = self.columns.renamed();
        let form = match self.form {
            None if renamed.is_empty() => return Ok(None),
            form => form.unwrap_or(Form::Alpaca),
        };
        let of_messages = ["instruction", "input", "output"];
        if form.is_chat()
            && let Some(column) = of_messages.iter().find(|name| renamed.contains_key(*name))
        {
            let reason = format!(
                "{column:?} has no column of its own in {}: it comes from the messages",
                form.title()
            );
            return Err(Error::setting("columns", reason));
        }
        Ok(Some(Shape {
            form,
            columns: columns(form, renamed)?,
            others: Others::Rejected,
        }))
    }
}

impl Shape {
    /// The shape of a file whose form was detected.
    #[must_use]
    pub fn detected(form: Form) -> Self {
        Self {
            form,
            columns: columns(form, BTreeMap::new()).expect("a form's own columns differ"),
            others: Others::Refused,
        }
    }

    /// The form.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// The columns of a table that are read, by the source's names.
    #[must_use]
    pub fn wanted(&self) -> Vec<&str> {
        let names = self.columns.names().iter().map(String::as_str);
        if !self.form.is_chat() {
            return names.collect();
        }
        let beside = [chat::SYSTEM].into_iter().chain(chat::TOOLS);
        let messages = self.form.marks().iter().copied();
        messages.chain(beside).chain(names.skip(3)).collect()
    }

    /// The columns that every record needs, each with our name for it.
    #[must_use]
    pub fn required(&self) -> Vec<(&'static str, &str)> {
        if self.form.is_chat() {
            return self
                .form
                .marks()
                .iter()
                .map(|mark| (*mark, *mark))
                .collect();
        }
        let names = self.columns.names();
        vec![("instruction", &names[0]), ("output", &names[2])]
    }

    /// Reads one JSON text, such as a line of JSON Lines.
    ///
    /// # Errors
    /// Why it gives no row.
    pub fn from_json_slice(&self, json: &[u8]) -> Result<Record, Fault> {
        let value = if self.form.is_chat() {
            let messages = self.form.marks()[0];
            let [.., category, index] = self.columns.checked();
            let column = |name: &'static str| Column {
                name,
                ours: name,
                required: name == messages,
            };
            let [tools, functions] = chat::TOOLS.map(column);
            let (system, list) = (column(chat::SYSTEM), column(messages));
            let columns = [list, system, tools, functions, category, index];
            let value = json::record(json, &columns)?;
            if let Some((number, key)) = json::twice_within(json, messages) {
                let reason = format!("message {number}: it has {key:?} twice; keep one of them");
                return Err(Reject::field(messages, reason).into());
            }
            value
        } else {
            json::record(json, &self.columns.checked())?
        };
        self.from_json(value)
    }

    /// Reads one JSON value.
    ///
    /// # Errors
    /// As [`Shape::from_json_slice`].
    pub fn from_json(&self, value: Value) -> Result<Record, Fault> {
        let found = value.as_object().and_then(Form::of_object);
        if let Some(other) = found.filter(|other| *other != self.form)
            && self.others == Others::Refused
        {
            let (ours, theirs) = (self.form, other);
            return Err(Fault::File(format!(
                "the record is {} ({}), and those before it are {} ({}); a file has one form: \
                 split the file, or name the form with --format {} to reject the others",
                theirs.title(),
                theirs.marks().join(", "),
                ours.title(),
                ours.marks().join(", "),
                ours.name(),
            )));
        }
        match value {
            Value::Object(mut object) if self.form.is_chat() => {
                let names = self.columns.names();
                let category = object.remove(&names[3]).unwrap_or_default();
                let index = object.remove(&names[4]).unwrap_or_default();
                let messages = self.form.marks()[0];
                if !object.contains_key(messages) {
                    let there: Vec<&str> = object.keys().map(String::as_str).collect();
                    let reason = format!("missing; the record has {}", there.join(", "));
                    return Err(Reject::field(messages, reason).into());
                }
                let chat::Texts {
                    instruction,
                    input,
                    output,
                } = chat::texts(&mut object, messages)?;
                let record = Record {
                    instruction,
                    input,
                    output,
                    category: Record::category(category)?,
                    index: Record::index(index)?,
                };
                Ok(record.checked()?)
            }
            value => Ok(Record::from_json(value, &self.columns)?),
        }
    }
}

/// Returns a form's columns with some of them renamed.
fn columns(form: Form, renamed: BTreeMap<&'static str, &str>) -> Result<Columns> {
    let own: &[(&str, &str)] = match form {
        Form::Dolly => &[("input", "context"), ("output", "response")],
        Form::PromptCompletion => &[("instruction", "prompt"), ("output", "completion")],
        Form::Alpaca | Form::Messages | Form::ShareGpt => &[],
    };
    Columns::new(own.iter().copied().chain(renamed))
}

/// Returns the form of one record's JSON text, if it has one.
#[must_use]
pub fn detect(json: &[u8]) -> Option<Form> {
    let value = json::record(json, &[]).ok()?;
    value.as_object().and_then(Form::of_object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(texts: [&str; 3]) -> Record {
        let [instruction, input, output] = texts.map(str::to_owned);
        Record {
            instruction,
            input,
            output,
            category: "qa".into(),
            index: "7".into(),
        }
    }

    #[test]
    fn the_same_record_in_every_form_has_one_digest() {
        let forms = [
            json!({"instruction": "訳す", "input": "問い", "output": "答え", "category": "qa", "index": 7}),
            json!({"instruction": "訳す", "context": "問い", "response": "答え", "category": "qa", "index": "7"}),
            json!({"messages": [
                {"role": "system", "content": "訳す"},
                {"role": "user", "content": "問い"},
                {"role": "assistant", "content": "答え"},
            ], "category": "qa", "index": 7}),
            json!({"conversations": [
                {"from": "system", "value": "訳す"},
                {"from": "human", "value": "問い"},
                {"from": "gpt", "value": "答え"},
            ], "category": "qa", "index": 7}),
            json!({"prompt": "訳す", "input": "問い", "completion": "答え", "category": "qa", "index": 7}),
        ];
        let wanted = record(["訳す", "問い", "答え"]);
        for (value, form) in forms.into_iter().zip(Form::ALL) {
            let text = value.to_string();
            assert_eq!(detect(text.as_bytes()), Some(form));
            let read = Shape::detected(form).from_json_slice(text.as_bytes());
            assert_eq!(read.unwrap().digest(), wanted.digest(), "{text}");
        }
    }

    #[test]
    fn another_form_refuses_the_file_unless_the_form_is_said() {
        let line = br#"{"conversations": []}"#;
        let fault = Shape::detected(Form::Alpaca)
            .from_json_slice(line)
            .unwrap_err();
        let Fault::File(reason) = fault else {
            panic!("{fault:?}")
        };
        for says in [
            "ShareGPT (conversations)",
            "alpaca (instruction, output)",
            "--format alpaca",
        ] {
            assert!(reason.contains(says), "{reason}");
        }
        for form in Form::ALL {
            let asked = Asked {
                form: Some(form),
                ..Asked::default()
            };
            let shape = asked.shape().unwrap().unwrap();
            let fault = shape.from_json_slice(b"{\"x\": 1}").unwrap_err();
            assert!(matches!(fault, Fault::Record(_)), "{fault:?}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named_at_any_depth_of_a_conversation() {
        let answer = r#"{"role": "assistant", "content": "a"}"#;
        let user = r#"{"role": "user", "content": "q"}"#;
        let read =
            |record: String| Shape::detected(Form::Messages).from_json_slice(record.as_bytes());
        for (record, says) in [
            (
                r#"{"messages": [], "messages": []}"#.to_owned(),
                "the record has \"messages\" twice",
            ),
            (
                format!(r#"{{"messages": [{user}, {answer}], "system": "s", "system": "t"}}"#),
                "the record has \"system\" twice",
            ),
            (
                format!(r#"{{"messages": [{user}, {answer}], "tools": [1], "tools": []}}"#),
                "the record has \"tools\" twice",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "content": "b"}]}"#
                    .to_owned(),
                "message 2: it has \"content\" twice; keep one of them",
            ),
            (
                format!(
                    r#"{{"messages": [{{"role": "user",
                        "content": [{{"type": "text", "text": "q", "text": "r"}}]}}, {answer}]}}"#
                ),
                "message 1: it has \"text\" twice",
            ),
        ] {
            match read(record.clone()).unwrap_err() {
                Fault::Record(reject) => assert!(reject.reason.contains(says), "{}", reject.reason),
                Fault::File(reason) => panic!("{record}: {reason}"),
            }
        }
        // A column that is not read may be there twice.
        let other =
            format!(r#"{{"messages": [{user}, {answer}], "x": {{"y": 1, "y": 2}}, "x": 1}}"#);
        assert_eq!(read(other).unwrap().output, "a");
    }

    #[test]
    fn names_of_columns_go_with_a_form() {
        let asked = |form, renamed: &[(&'static str, &'static str)]| Asked {
            form,
            columns: Columns::new(renamed.iter().copied()).unwrap(),
        };
        assert_eq!(asked(None, &[]).shape().unwrap(), None);
        let dolly = asked(Some(Form::Dolly), &[("index", "id")])
            .shape()
            .unwrap()
            .unwrap();
        let read = dolly.from_json(
            json!({"instruction": "訳す", "context": "問い", "response": "答え", "category": "qa", "id": 7}),
        );
        assert_eq!(read.unwrap(), record(["訳す", "問い", "答え"]));
        // Without a form, names stand for our own columns, and no form is looked for.
        let renamed = asked(None, &[("output", "response")])
            .shape()
            .unwrap()
            .unwrap();
        assert_eq!(renamed.form(), Form::Alpaca);
        let value = json!({"instruction": "訳す", "context": "問い", "response": "答え"});
        assert_eq!(renamed.from_json(value).unwrap().input, "");
        assert!(
            asked(Some(Form::Messages), &[("input", "x")])
                .shape()
                .is_err()
        );
        assert!(
            asked(Some(Form::Dolly), &[("input", "response")])
                .shape()
                .is_err()
        );
        let chat = asked(Some(Form::Messages), &[("category", "topic")])
            .shape()
            .unwrap()
            .unwrap();
        assert_eq!(
            chat.wanted(),
            ["messages", "system", "tools", "functions", "topic", "index"]
        );
    }
}
