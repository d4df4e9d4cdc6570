//! The command line, and its help, which shows examples first.

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    adapters, ask, chat, completions, datasets, events, export, fetch, gc, generate, jobs, logits,
    make_base, policies, prepare, quantize, tokenize, train, up,
};
use crate::demo::command::Demo;
use crate::globals::Flags;
use crate::pipeline::command::Run;

/// Examples before usage, options after.
const TEMPLATE: &str =
    "{about-with-newline}\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}";

const EXAMPLES: &str = "\
Examples:
  togi demo                                            see everything once, in under three minutes
  togi up                                              start the services on this machine
  togi prepare records.jsonl --name mine               records in: a data set
  togi train --recipe demo-cpu --dataset mine --alias mine
  togi generate --adapter mine --instruction 富士山の高さは？";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed (a job too), 2 a wrong value on the command line or in a request,
3 not found, 4 unavailable or not answered in time, 5 refused by a gate or by the state of things,
64 a wrong file (settings, recipe, policy, pipeline, a line of local input), 130 interrupted.
Data goes to standard output, messages and progress to standard error.";

/// Togi tailors a Japanese language model to its owner's data and serves the result.
#[derive(Debug, Parser)]
#[command(name = "togi", version, before_help = EXAMPLES, after_help = EXIT_CODES, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Args {
    /// The options of every command.
    #[command(flatten)]
    pub flags: Flags,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts the three services and their own NATS server in one process
    Up(up::Up),
    /// Shows the whole pipeline on the embedded base: prepare, train, ask, retrain
    Demo(Demo),
    /// Prepares, trains, evaluates and publishes in one call, for CI
    Run(Run),
    /// Turns records into a data set
    Prepare(prepare::Prepare),
    /// Trains an adapter on a data set
    Train(train::Train),
    /// Lists, shows, follows and cancels jobs
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// Lists and shows data sets
    #[command(subcommand)]
    Datasets(datasets::Datasets),
    /// Lists, shows, promotes, rolls back, pulls and pushes adapters
    #[command(subcommand)]
    Adapters(adapters::Adapters),
    /// Manages the policies that retrain when a data set changes or on a schedule
    #[command(subcommand)]
    Policies(policies::Policies),
    /// Generates one answer
    Generate(generate::Generate),
    /// Asks a list of questions, and scores the answers if the right ones are given
    Ask(ask::Ask),
    /// Asks one question at a time, until `quit`
    Chat(chat::Chat),
    /// Follows events as they happen
    Events(events::Events),
    /// Deletes objects that no manifest reaches and that are older than a day
    Gc(gc::Gc),
    /// Turns texts into token ids, and back
    Tokenize(tokenize::Tokenize),
    /// Writes the network's logits to a file
    Logits(logits::Logits),
    /// Downloads a base's files to this machine
    Fetch(fetch::Fetch),
    /// Writes a base with packed weights
    Quantize(quantize::Quantize),
    /// Writes a base with an adapter merged into it
    Export(export::Export),
    /// Writes a base with random weights
    MakeBase(make_base::MakeBase),
    /// Prints a shell's completions
    Completions(completions::Completions),
}

impl Args {
    /// Parses a command line, whose first word is the program's name.
    ///
    /// # Errors
    /// clap's error, which also carries the output of `--help` and `--version`.
    pub fn read<I: IntoIterator<Item = T>, T: Into<std::ffi::OsString> + Clone>(
        words: I,
    ) -> Result<Self, clap::Error> {
        Self::from_arg_matches(&command().try_get_matches_from(words)?)
    }
}

/// Returns the whole command, with the help template set on every subcommand.
pub fn command() -> clap::Command {
    fn shape(command: clap::Command) -> clap::Command {
        let names: Vec<String> = command
            .get_subcommands()
            .map(|inner| inner.get_name().to_owned())
            .collect();
        names
            .into_iter()
            .fold(command.help_template(TEMPLATE), |command, name| {
                command.mut_subcommand(name, shape)
            })
    }
    shape(Args::command())
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn read(line: &str) -> Result<Args, clap::Error> {
        Args::read(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples_before_its_usage() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_help().to_string();
            let examples = help.find("Examples:");
            let usage = help.find("Usage:").expect(path);
            if command.get_subcommands().next().is_none() || path == "togi" {
                assert!(examples.expect(path) < usage, "{path}\n{help}");
            }
            for inner in command.get_subcommands_mut() {
                let path = format!("{path} {}", inner.get_name());
                check(inner, &path);
            }
        }
        let mut command = command();
        command.build();
        check(&mut command, "togi");
    }

    #[test]
    fn what_is_written_is_what_is_done() {
        let args =
            read("togi prepare a.jsonl --name x --learn answer --column input=context -o json -q")
                .unwrap();
        let Command::Prepare(prepare) = args.command else {
            panic!("{args:?}")
        };
        assert_eq!(
            prepare.file.as_deref(),
            Some(std::path::Path::new("a.jsonl"))
        );
        assert_eq!(prepare.column, [("input".to_owned(), "context".to_owned())]);
        assert!(args.flags.quiet);
        assert_eq!(args.flags.output, Some(crate::output::Format::Json));
        let args = read("togi train --recipe demo-cpu --dataset x --alias y --no-watch").unwrap();
        let Command::Train(train) = args.command else {
            panic!("{args:?}")
        };
        assert_eq!(
            (
                train.base.as_str(),
                train.follow.watch,
                train.follow.no_watch
            ),
            ("demo", false, true)
        );
    }

    #[test]
    fn usage_errors_are_told_apart() {
        let table = [
            ("togi", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("togi bake", ErrorKind::InvalidSubcommand),
            ("togi prepare", ErrorKind::MissingRequiredArgument),
            (
                "togi prepare a --hub hf://datasets/x/y",
                ErrorKind::ArgumentConflict,
            ),
            ("togi prepare a --learn most", ErrorKind::InvalidValue),
            ("togi prepare a --column input", ErrorKind::ValueValidation),
            (
                "togi train --recipe x --dataset y",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "togi generate --instruction a --raw b",
                ErrorKind::ArgumentConflict,
            ),
            (
                "togi generate --temperature warm",
                ErrorKind::ValueValidation,
            ),
            ("togi tokenize", ErrorKind::MissingRequiredArgument),
            (
                "togi tokenize --base x --tokenizer y",
                ErrorKind::ArgumentConflict,
            ),
            (
                "togi tokenize --base x --decode --eos",
                ErrorKind::ArgumentConflict,
            ),
            (
                "togi logits --base x --out y",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "togi train --local --recipe x --records r --out o",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "togi train --recipe x --dataset d --alias a --records r",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "togi train --local --recipe x --base b --records r --out o --watch",
                ErrorKind::ArgumentConflict,
            ),
            (
                "togi generate --base x --precision int3",
                ErrorKind::ValueValidation,
            ),
            (
                "togi export --base x --adapter y --out z",
                ErrorKind::MissingRequiredArgument,
            ),
            ("togi jobs list --output xml", ErrorKind::InvalidValue),
            ("togi --help", ErrorKind::DisplayHelp),
            ("togi --version", ErrorKind::DisplayVersion),
        ];
        for (line, kind) in table {
            assert_eq!(
                read(line).err().map(|error| error.kind()),
                Some(kind),
                "{line}"
            );
        }
    }
}
