//! The report in JUnit's XML for CI systems: one test case per stage. A refusal by the gate is a
//! failure; any other problem is an error.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use crate::error::{Error, Result};
use crate::pipeline::report::{Done, Outcome, Report};

/// Writes the report.
///
/// # Errors
/// [`Error::Failed`] if the report cannot be written as XML.
pub fn xml(report: &Report) -> Result<String> {
    let took = Duration::from_secs_f64(report.seconds);
    let mut suite = TestSuite::new(&*report.pipeline);
    suite.set_time(took);
    suite.add_test_cases(
        report
            .stages
            .iter()
            .map(|done| case(&report.pipeline, done)),
    );
    let mut all = quick_junit::Report::new("togi");
    all.set_time(took).add_test_suite(suite);
    let xml = all.to_string();
    xml.map_err(|error| Error::Failed(format!("the JUnit report: {error}")))
}

/// Writes a stage as a test case.
fn case(pipeline: &str, done: &Done) -> TestCase {
    let status = match done.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Skipped => TestCaseStatus::skipped(),
        Outcome::Refused => unsuccessful(NonSuccessKind::Failure, "gate", done),
        Outcome::Failed => unsuccessful(NonSuccessKind::Error, "togi", done),
    };
    let mut case = TestCase::new(done.stage.name(), status);
    case.set_classname(format!("togi.{pipeline}"));
    case.set_time(Duration::from_secs_f64(done.seconds));
    case
}

fn unsuccessful(kind: NonSuccessKind, name: &str, done: &Done) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(name);
    let message = done.message.as_deref().unwrap_or_default();
    status.set_message(message);
    // XML reads a line break in an attribute as a blank, but keeps it in an element's text.
    if message.contains('\n') {
        status.set_description(message);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::report::Stage;

    #[test]
    fn every_stage_is_a_case_and_texts_are_escaped() {
        let mut report = Report::new("a&b");
        let mut reach = |stage, outcome: Result<()>| {
            futures::executor::block_on(report.stage(stage, std::future::ready(outcome)))
        };
        reach(Stage::Prepare, Ok(())).unwrap();
        let smoke = Error::Failed("<火事> & \"smoke\"\u{1}".into());
        let failed = reach(Stage::Train, Err(smoke));
        report.finish(&failed);
        let xml = xml(&report).unwrap();
        for part in [
            "<testsuite name=\"a&amp;b\" tests=\"4\" skipped=\"2\" errors=\"1\" failures=\"0\"",
            "<testcase name=\"prepare\" classname=\"togi.a&amp;b\"",
            "<error message=\"&lt;火事&gt; &amp; &quot;smoke&quot;\" type=\"togi\"/>",
            "<testcase name=\"publish\" classname=\"togi.a&amp;b\" time=\"0.000\">",
            "<skipped/>",
        ] {
            assert!(xml.contains(part), "{part}\n{xml}");
        }
        assert_eq!((report.exit_code, report.outcome), (1, Outcome::Failed));
    }

    #[test]
    fn line_breaks_of_a_message_are_kept_in_the_text() {
        let mut report = Report::new("mine");
        report.finish(&Err(Error::Failed("line 1 < 2\n  | ^ here".into())));
        let xml = xml(&report).unwrap();
        let text = " type=\"togi\">line 1 &lt; 2\n  | ^ here</error>";
        assert!(xml.contains(text), "{xml}");
    }
}
