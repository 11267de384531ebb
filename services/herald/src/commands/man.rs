//! `herald man`

use std::{fs, path::PathBuf};

use clap::ValueHint;
use herald_cli::{
    context::Context,
    failure::Failure,
    output::{Show, counted},
};
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  herald man ~/.local/share/man/man1
  man herald-post";

/// Write the manual pages, one per command
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// The directory of the pages; created if missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

#[derive(Debug, Serialize)]
struct WrittenPages {
    directory: PathBuf,
    page_count: u64,
}

impl Show for WrittenPages {
    fn text(&self) -> String {
        format!(
            "{} in {}",
            counted(self.page_count, "page", "pages"),
            self.directory.display()
        )
    }
}

/// Writes a page for `command`, the root command, and for each subcommand.
pub(crate) fn run(args: &Args, command: clap::Command, context: &Context) -> Result<(), Failure> {
    let directory = &args.directory;
    let failure = |error| {
        Failure::io(
            format!("can't write the pages to {}", directory.display()),
            &error,
        )
    };
    fs::create_dir_all(directory).map_err(failure)?;
    // Without this, each page would exist twice: `herald-X` and `herald-help-X`.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut page_count = 0;
    let mut queue = vec![command];
    while let Some(command) = queue.pop() {
        let visible = command
            .get_subcommands()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
        queue.extend(visible.cloned());
        clap_mangen::Man::new(command)
            .generate_to(directory)
            .map_err(failure)?;
        page_count += 1;
    }
    context.output.show(&WrittenPages {
        directory: args.directory.clone(),
        page_count,
    })
}
