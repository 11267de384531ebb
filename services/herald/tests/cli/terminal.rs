//! A pseudo-terminal for commands that ask for confirmation, or draw on it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::Stdio,
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{process::Child, sync::watch};

use crate::run::{CommandResult, LIMIT, command, interrupt};

/// A running command whose standard input and error are a terminal. Standard output is a pipe.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: watch::Receiver<String>,
}

impl Terminal {
    pub(crate) fn start(server: &str, arguments: &[&str]) -> Self {
        Self::start_with(server, arguments, |_| Stdio::piped())
    }

    /// Standard output is the terminal, too, of 80 × 24.
    pub(crate) fn start_whole(server: &str, arguments: &[&str]) -> Self {
        Self::start_with(server, arguments, |device| {
            let size = Winsize {
                ws_row: 24,
                ws_col: 80,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(device, size).unwrap();
            Stdio::from(device.try_clone().unwrap())
        })
    }

    fn start_with(server: &str, arguments: &[&str], stdout: impl FnOnce(&OwnedFd) -> Stdio) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let device: OwnedFd =
            rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let child = command(server, arguments)
            .stdin(Stdio::from(device.try_clone().unwrap()))
            .stdout(stdout(&device))
            .stderr(Stdio::from(device))
            .spawn()
            .unwrap();
        let keyboard = File::from(controller);
        let mut reader = keyboard.try_clone().unwrap();
        let (shown, screen) = watch::channel(String::new());
        // The read fails when the command ends and closes its side of the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 1_024];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                shown.send_modify(|screen| screen.push_str(&text));
            }
        });
        Self {
            child,
            keyboard,
            screen,
        }
    }

    /// Waits until the screen contains `text`.
    pub(crate) async fn wait_for(&mut self, text: &str) {
        let shown = self.screen.wait_for(|screen| screen.contains(text));
        let is_shown = matches!(tokio::time::timeout(LIMIT, shown).await, Ok(Ok(_)));
        assert!(is_shown, "{text:?} is not shown: {:?}", *self.screen.borrow());
    }

    /// All output so far.
    pub(crate) fn screen(&self) -> String {
        self.screen.borrow().clone()
    }

    /// Types `text`.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Sends Ctrl-C.
    pub(crate) async fn interrupt(&self) {
        interrupt(&self.child).await;
    }

    /// Waits for the end of the command. The result has the screen as standard error.
    pub(crate) async fn end(mut self) -> CommandResult {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await;
        // Wait until the reader has read all output.
        while self.screen.changed().await.is_ok() {}
        let mut done = CommandResult::from(output.expect("the command ends within the limit").unwrap());
        done.stderr.clone_from(&self.screen.borrow());
        done
    }
}
