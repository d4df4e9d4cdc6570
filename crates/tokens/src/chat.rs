//! A list of messages as one question with its answer. Several turns are not one record: they
//! refuse the file, because leaving some out would cut what was said.

use serde_json::{Map, Value};

use crate::record::{Fault, Reject};

/// Columns of a record beside its messages that change their meaning.
pub(crate) const SYSTEM: &str = "system";
pub(crate) const TOOLS: [&str; 2] = ["tools", "functions"];
/// Keys of a message that its text alone does not carry.
const CALLS: [&str; 2] = ["tool_calls", "function_call"];

/// The texts of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) instruction: String,
    pub(crate) input: String,
    pub(crate) output: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    System,
    User,
    Assistant,
}

/// Reads the messages in `column`, and takes the columns beside them that belong to them.
pub(crate) fn texts(object: &mut Map<String, Value>, column: &str) -> Result<Texts, Fault> {
    let reject = |reason: String| Fault::from(Reject::field(column, reason));
    if let Some(tools) = TOOLS
        .iter()
        .find(|name| holds_something(object.get(**name)))
    {
        let reason = format!("the record has {tools}, and calls of tools are not trained on");
        return Err(Reject::field(tools, reason).into());
    }
    let list = match object.remove(column) {
        Some(Value::Array(list)) => list,
        None | Some(Value::Null) => return Err(reject("missing".to_owned())),
        Some(_) => return Err(reject("expected a list of messages".to_owned())),
    };
    let mut messages = Vec::with_capacity(list.len());
    match object.remove(SYSTEM) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.trim().is_empty() => {}
        Some(Value::String(text)) => messages.push((Role::System, text)),
        Some(_) => return Err(Reject::field(SYSTEM, "expected a text").into()),
    }
    for (at, message) in list.into_iter().enumerate() {
        let read = self::message(message);
        messages.push(read.map_err(|reason| reject(format!("message {}: {reason}", at + 1)))?);
    }
    let count = |wanted: Role| messages.iter().filter(|(role, _)| *role == wanted).count();
    let (questions, answers) = (count(Role::User), count(Role::Assistant));
    if questions > 1 || answers > 1 {
        return Err(Fault::File(format!(
            "{column}: the conversation has several turns (messages of the user: {questions}, of \
             the assistant: {answers}), and a record is one question with its answer; nothing is \
             left out silently: write a record for each answer, or leave the conversation out"
        )));
    }
    let mut messages = messages.into_iter();
    let mut next = || messages.next();
    match (next(), next(), next(), next()) {
        (Some((Role::User, instruction)), Some((Role::Assistant, output)), None, None) => {
            Ok(Texts {
                instruction,
                input: String::new(),
                output,
            })
        }
        (
            Some((Role::System, system)),
            Some((Role::User, user)),
            Some((Role::Assistant, output)),
            None,
        ) => {
            let empty = system.trim().is_empty();
            let (instruction, input) = if empty {
                (user, String::new())
            } else {
                (system, user)
            };
            Ok(Texts {
                instruction,
                input,
                output,
            })
        }
        _ if answers == 0 => Err(reject("there is no answer of the assistant".to_owned())),
        _ if questions == 0 => Err(reject("there is no question of the user".to_owned())),
        _ => Err(reject(
            "the messages are not a system message (or none), a question and its answer, in this \
             order"
                .to_owned(),
        )),
    }
}

/// Reads one message: `role` and `content`, or `from` and `value`.
fn message(message: Value) -> Result<(Role, String), String> {
    let Value::Object(mut message) = message else {
        return Err("expected an object".to_owned());
    };
    if let Some(call) = CALLS.iter().find(|key| holds_something(message.get(**key))) {
        return Err(format!(
            "it has {call}, and calls of tools are not trained on"
        ));
    }
    let mut take = |[one, other]: [&str; 2]| {
        let value = message.remove(one).filter(|value| !value.is_null());
        value.or_else(|| message.remove(other)).unwrap_or_default()
    };
    let role = match take(["role", "from"]) {
        Value::String(role) => self::role(&role)?,
        _ => return Err("it has no role (or from)".to_owned()),
    };
    let text = match take(["content", "value"]) {
        Value::String(text) => text,
        Value::Array(parts) => self::parts(parts)?,
        _ => return Err("it has no content (or value)".to_owned()),
    };
    if role == Role::Assistant && message.get("weight").and_then(Value::as_f64) == Some(0.0) {
        return Err("it has the weight 0, so that there is nothing to learn".to_owned());
    }
    Ok((role, text))
}

fn role(name: &str) -> Result<Role, String> {
    match name {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" | "chatgpt" | "model" => Ok(Role::Assistant),
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(format!(
                "its role is {shown:?}; system, user and assistant (human and gpt) are read"
            ))
        }
    }
}

/// Joins the parts of a content that are texts; OpenAI's other parts are images, sound and files.
fn parts(parts: Vec<Value>) -> Result<String, String> {
    let mut text = String::new();
    for part in &parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(more)) => text += more,
            (kind, _) => {
                let kind: String = kind.unwrap_or("no type").chars().take(40).collect();
                return Err(format!("a part of its content is {kind:?}; texts are read"));
            }
        }
    }
    Ok(text)
}

fn holds_something(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(object)) => !object.is_empty(),
        Some(Value::String(text)) => !matches!(text.trim(), "" | "[]"),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(record: Value) -> Result<[String; 3], Fault> {
        let mut object = record.as_object().unwrap().clone();
        let Texts {
            instruction,
            input,
            output,
        } = texts(&mut object, "messages")?;
        Ok([instruction, input, output])
    }

    #[test]
    fn a_question_with_its_answer_is_a_record() {
        let user = json!({"role": "user", "content": "問い"});
        let answer = json!({"role": "assistant", "content": "答え", "weight": 1});
        let system = json!({"role": "system", "content": "訳す"});
        let blank = json!({"role": "developer", "content": " "});
        let human = json!({"from": "human", "value": "問い"});
        let gpt = json!({"from": "gpt", "value": "答え"});
        let parts = json!({"role": "user", "content": [
            {"type": "text", "text": "問"}, {"type": "text", "text": "い"},
        ]});
        let table = [
            (json!({"messages": [user, answer]}), ["問い", "", "答え"]),
            (
                json!({"messages": [system, user, answer]}),
                ["訳す", "問い", "答え"],
            ),
            (
                json!({"messages": [blank, user, answer]}),
                ["問い", "", "答え"],
            ),
            (
                json!({"messages": [human, gpt], "tools": "[]"}),
                ["問い", "", "答え"],
            ),
            (
                json!({"messages": [human, gpt], "system": "訳す"}),
                ["訳す", "問い", "答え"],
            ),
            (json!({"messages": [parts, answer]}), ["問い", "", "答え"]),
        ];
        for (record, wanted) in table {
            assert_eq!(read(record.clone()).unwrap(), wanted, "{record}");
        }
    }

    #[test]
    fn several_turns_refuse_the_file_and_other_faults_the_record() {
        let said = |roles: &[&str]| -> Vec<Value> {
            let one = |role: &&str| json!({"role": role, "content": "x"});
            roles.iter().map(one).collect()
        };
        for roles in [
            &["user", "assistant", "user", "assistant"][..],
            &["system", "user", "assistant", "user"],
            &["assistant", "user", "assistant"],
            &["user", "user", "assistant"],
        ] {
            let fault = read(json!({"messages": said(roles)})).unwrap_err();
            assert!(matches!(fault, Fault::File(_)), "{roles:?}: {fault:?}");
        }
        let table = [
            (json!({"messages": "x"}), "expected a list"),
            (json!({"messages": []}), "no answer"),
            (json!({"messages": said(&["user"])}), "no answer"),
            (json!({"messages": said(&["assistant"])}), "no question"),
            (
                json!({"messages": said(&["assistant", "user"])}),
                "in this order",
            ),
            (
                json!({"messages": said(&["user", "system", "assistant"])}),
                "in this order",
            ),
            (
                json!({"messages": said(&["user", "tool"])}),
                "message 2: its role is \"tool\"",
            ),
            (json!({"messages": ["x"]}), "message 1: expected an object"),
            (json!({"messages": [{"role": "user"}]}), "no content"),
            (json!({"messages": [{"content": "x"}]}), "no role"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "image_url",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}),
                "tool_calls",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}),
                "weight 0",
            ),
            (
                json!({"messages": said(&["user", "assistant"]), "tools": [1]}),
                "tools",
            ),
            (
                json!({"messages": said(&["user", "assistant"]), "system": 1}),
                "expected a text",
            ),
        ];
        for (record, says) in table {
            match read(record.clone()).unwrap_err() {
                Fault::Record(reject) => assert!(reject.reason.contains(says), "{}", reject.reason),
                Fault::File(reason) => panic!("{record}: {reason}"),
            }
        }
    }
}
