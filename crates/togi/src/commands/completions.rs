//! `togi completions`: a shell's completion script.

use clap::Args;
use clap_complete::Shell;

use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  togi completions bash > ~/.local/share/bash-completion/completions/togi
  togi completions zsh > ~/.zfunc/_togi
  togi completions fish > ~/.config/fish/completions/togi.fish";

/// The command's options.
#[derive(Debug, Args)]
#[command(before_help = EXAMPLES)]
pub struct Completions {
    /// bash, elvish, fish, powershell or zsh
    #[arg(hide_possible_values = true)]
    pub shell: Shell,
}

impl Completions {
    /// Prints the completions of `command`.
    pub(crate) fn run(&self, mut command: clap::Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "togi", &mut script);
        Ok(std::io::Write::write_all(
            &mut std::io::stdout().lock(),
            &script,
        )?)
    }
}
