//! The forms in which instructions with their answers are published: the columns of a record, and
//! what they stand for. How a record is read by its form stands in `shape`.

use serde_json::{Map, Value};

/// A form of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `instruction`, `input` and `output`: our own columns.
    Alpaca,
    /// `instruction`, `context` and `response`.
    Dolly,
    /// OpenAI's `messages`, each with `role` and `content`.
    Messages,
    /// ShareGPT's `conversations`, each with `from` and `value`.
    ShareGpt,
    /// `prompt` and `completion`.
    PromptCompletion,
}

impl Form {
    /// Every form, in the order in which they are looked for: a record with the columns of two
    /// forms has the first one.
    pub const ALL: [Self; 5] = [
        Self::Alpaca,
        Self::Dolly,
        Self::Messages,
        Self::ShareGpt,
        Self::PromptCompletion,
    ];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Dolly => "dolly",
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt-completion",
        }
    }

    /// Reads a form's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// The name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Dolly => "Dolly",
            Self::Messages => "OpenAI messages",
            Self::ShareGpt => "ShareGPT",
            Self::PromptCompletion => "prompt and completion",
        }
    }

    /// The columns that a record of this form has.
    #[must_use]
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["instruction", "output"],
            Self::Dolly => &["instruction", "response"],
            Self::Messages => &["messages"],
            Self::ShareGpt => &["conversations"],
            Self::PromptCompletion => &["prompt", "completion"],
        }
    }

    /// What its columns become, for people; empty for our own columns.
    #[must_use]
    pub fn mapping(self) -> &'static str {
        match self {
            Self::Alpaca => "",
            Self::Dolly => "context becomes input, response output",
            Self::Messages => {
                "a system message becomes the instruction and the user's its input, the user's \
                 alone the instruction, the assistant's the output"
            }
            Self::ShareGpt => {
                "a system text becomes the instruction and human its input, human alone the \
                 instruction, gpt the output"
            }
            Self::PromptCompletion => "prompt becomes instruction, completion output",
        }
    }

    /// Whether its records are lists of messages.
    #[must_use]
    pub fn is_chat(self) -> bool {
        matches!(self, Self::Messages | Self::ShareGpt)
    }

    /// Returns the form of a table by its columns.
    pub fn of_columns(has: impl Fn(&str) -> bool) -> Option<Self> {
        let fits = |form: &Self| form.marks().iter().all(|mark| has(mark));
        Self::ALL.into_iter().find(fits)
    }

    /// Returns the form of a record by its columns that are not null.
    #[must_use]
    pub fn of_object(object: &Map<String, Value>) -> Option<Self> {
        let fits = |form: &Self| {
            let mut marks = form.marks().iter();
            marks.all(|mark| match object.get(*mark) {
                None | Some(Value::Null) => false,
                Some(value) => !form.is_chat() || value.is_array(),
            })
        };
        Self::ALL.into_iter().find(fits)
    }

    /// Lists every form with its columns, for messages.
    #[must_use]
    pub fn list() -> String {
        let one = |form: Self| format!("{} ({})", form.title(), form.marks().join(", "));
        Self::ALL.map(one).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_has_the_first_form_whose_columns_it_has() {
        let table = [
            (
                json!({"instruction": "q", "output": "a", "messages": []}),
                Some(Form::Alpaca),
            ),
            (
                json!({"instruction": "q", "output": null, "response": "a"}),
                Some(Form::Dolly),
            ),
            (json!({"prompt": "p", "messages": []}), Some(Form::Messages)),
            (
                json!({"messages": "[]", "prompt": "p", "completion": "c"}),
                Some(Form::PromptCompletion),
            ),
            (json!({"id": 1, "conversations": []}), Some(Form::ShareGpt)),
            (json!({"text": "t"}), None),
        ];
        for (record, form) in table {
            assert_eq!(
                Form::of_object(record.as_object().unwrap()),
                form,
                "{record}"
            );
        }
        assert_eq!(
            Form::of_columns(|name| name == "messages"),
            Some(Form::Messages)
        );
        for form in Form::ALL {
            assert_eq!(Form::from_name(form.name()), Some(form));
        }
    }
}
