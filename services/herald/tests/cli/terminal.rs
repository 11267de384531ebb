//! A terminal for a command that asks.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::Stdio,
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use tokio::{process::Child, sync::watch};

use crate::run::{Done, LIMIT, command};

/// A command whose standard input and error are a terminal. What it answers still goes into a pipe.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: watch::Receiver<String>,
}

impl Terminal {
    pub(crate) fn start(server: &str, arguments: &[&str]) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs: OwnedFd =
            rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let child = command(server, arguments)
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let keyboard = File::from(ours);
        let mut glass = keyboard.try_clone().unwrap();
        let (shown, screen) = watch::channel(String::new());
        // Ends with the command, which then has been the last to hold the other end.
        std::thread::spawn(move || {
            let mut bytes = [0; 1_024];
            while let Ok(count @ 1..) = glass.read(&mut bytes) {
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

    /// Waits until this can be read.
    pub(crate) async fn shows(&mut self, text: &str) {
        let shown = self.screen.wait_for(|screen| screen.contains(text));
        let is_shown = matches!(tokio::time::timeout(LIMIT, shown).await, Ok(Ok(_)));
        assert!(is_shown, "{text:?} is not shown: {:?}", *self.screen.borrow());
    }

    /// Types this.
    pub(crate) fn enter(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the end. The screen is told as standard error.
    pub(crate) async fn end(mut self) -> Done {
        let output = tokio::time::timeout(LIMIT, self.child.wait_with_output()).await;
        // Until all that was shown is read.
        while self.screen.changed().await.is_ok() {}
        let mut done = Done::from(output.expect("it doesn't end").unwrap());
        done.stderr.clone_from(&self.screen.borrow());
        done
    }
}
