//! The report in JUnit's XML, which CI systems show: a test case a stage. A refusal by the gate is a failure, anything else that went
//! wrong an error.

use std::fmt::Write as _;

use crate::pipeline::report::{Done, Outcome, Report};

/// Writes the report.
#[must_use]
pub fn xml(report: &Report) -> String {
    let count = |outcome| {
        let stages = report.stages.iter();
        stages.filter(|done| done.outcome == outcome).count()
    };
    let name = escaped(&report.pipeline);
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\"",
        report.stages.len(),
        count(Outcome::Refused),
        count(Outcome::Failed),
        count(Outcome::Skipped),
        report.seconds
    );
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a text does not fail.
    let _ = writeln!(xml, "<testsuites name=\"togi\" {counts}>");
    let _ = writeln!(xml, "  <testsuite name=\"{name}\" {counts}>");
    for done in &report.stages {
        let (stage, seconds) = (done.stage.name(), done.seconds);
        let case =
            format!("<testcase classname=\"togi.{name}\" name=\"{stage}\" time=\"{seconds:.3}\"");
        let _ = match inner(done) {
            Some(inner) => writeln!(xml, "    {case}>{inner}</testcase>"),
            None => writeln!(xml, "    {case}/>"),
        };
    }
    xml += "  </testsuite>\n</testsuites>\n";
    xml
}

fn inner(done: &Done) -> Option<String> {
    let message = escaped(done.message.as_deref().unwrap_or_default());
    match done.outcome {
        Outcome::Passed => None,
        Outcome::Refused => Some(format!("<failure type=\"gate\" message=\"{message}\"/>")),
        Outcome::Failed => Some(format!("<error type=\"togi\" message=\"{message}\"/>")),
        Outcome::Skipped => Some("<skipped/>".to_owned()),
    }
}

/// Writes a text as an attribute's value; characters that XML does not have become a replacement character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(letter));
            }
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Error, pipeline::report::Stage};

    #[test]
    fn every_stage_is_a_case_and_texts_are_escaped() {
        let mut report = Report::new("a&b");
        let mut reach = |stage, outcome: Result<(), Error>| {
            futures::executor::block_on(report.stage(stage, std::future::ready(outcome)))
        };
        reach(Stage::Prepare, Ok(())).unwrap();
        let smoke = Error::Failed("<火事> & \"smoke\"\u{1}\n".into());
        let failed = reach(Stage::Train, Err(smoke));
        report.finish(&failed);
        let xml = xml(&report);
        for part in [
            "<testsuite name=\"a&amp;b\" tests=\"4\" failures=\"0\" errors=\"1\" skipped=\"2\"",
            "classname=\"togi.a&amp;b\" name=\"prepare\"",
            "<error type=\"togi\" message=\"&lt;火事&gt; &amp; &quot;smoke&quot;\u{fffd}&#10;\"/>",
            "name=\"publish\" time=\"0.000\"><skipped/></testcase>",
        ] {
            assert!(xml.contains(part), "{part}\n{xml}");
        }
        assert_eq!((report.exit_code, report.outcome), (1, Outcome::Failed));
    }
}
