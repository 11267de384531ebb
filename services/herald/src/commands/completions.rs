//! `herald completions`

use clap_complete::Shell;
use herald_cli::{failure::Failure, output::Output};

const EXAMPLES: &str = "\
Examples:
  bash:  herald completions bash > ~/.local/share/bash-completion/completions/herald
  zsh:   herald completions zsh > \"${fpath[1]}/_herald\"
  fish:  herald completions fish > ~/.config/fish/completions/herald.fish

  For the current bash session only:
    source <(herald completions bash)";

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell whose script is printed
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for `command`, the root command.
pub(crate) fn run(args: &Args, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "herald", &mut script);
    Output::write(&String::from_utf8_lossy(&script))
}
