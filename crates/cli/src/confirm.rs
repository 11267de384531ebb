//! Asks for confirmation on the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::failure::Failure;

/// Whether someone can be asked: input from a pipe is not a confirmation, because nobody has read the question.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question on the terminal. Any answer but yes is no.
///
/// # Errors
/// The terminal can't be read or written.
pub fn ask(question: &str) -> Result<bool, Failure> {
    let failure = |error| Failure::io("can't ask for confirmation on the terminal", &error);
    let mut terminal = io::stderr();
    write!(terminal, "{question} [y/N] ")
        .and_then(|()| terminal.flush())
        .map_err(failure)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failure)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
