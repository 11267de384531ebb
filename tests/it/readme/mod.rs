//! Runs the commands of README.md and examples/README.md as written, in order, on an empty data directory.

mod process;
mod script;

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::{
    process::Process,
    script::{Command, parse},
};
use crate::HERALD;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Time limit of a command. The first run of a server or an example may download or build nats-server and other tools.
const LIMIT: Duration = Duration::from_mins(10);

/// Time limit for a command's effect to become visible.
const VISIBLE_LIMIT: Duration = Duration::from_mins(1);

/// Server address on the pages. The server of the test listens on a free port instead.
const ADDRESS: &str = "127.0.0.1:7700";
/// Address of the server's operator port on the pages.
const OPERATOR_ADDRESS: &str = "127.0.0.1:7702";

/// Commands that are not run, with the reason.
const NOT_RUN: [(&str, &str); 1] = [("cargo test --workspace", "it runs this test")];

/// How to run a command.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    /// Don't run the command.
    Skip,
    /// Run until it exits; the output must match.
    UntilExit,
    /// Run until it exits, and repeat until the output matches: the effect of the previous command becomes visible
    /// later than its answer.
    RetryUntilMatch,
    /// Run until the output matches, then interrupt: it doesn't exit by itself.
    UntilMatch,
    /// Run in the background of all later commands, like a command in another terminal.
    Background,
}

/// How to run a command. `None`: the command is unknown and must be added here.
fn run_mode(command: &Command) -> Option<Mode> {
    let text = command.without_comment();
    if NOT_RUN.iter().any(|(not_run, _)| *not_run == text) {
        return Some(Mode::Skip);
    }
    let text = adapt(text);
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["herald", "up" | "push-sink", ..] => Some(Mode::Background),
        ["herald", _, ..] if words.contains(&"--watch") => Some(Mode::UntilMatch),
        ["herald", "timeline" | "lag", ..] | ["herald", "dlq", "groups" | "list" | "show" | "log", ..] => {
            Some(Mode::RetryUntilMatch)
        }
        ["herald", _, ..] | ["grpcurl", ..] | ["examples/python/run" | "examples/grpcurl/run"] => {
            Some(Mode::UntilExit)
        }
        _ => None,
    }
}

/// The command with the program under test instead of `cargo run`.
fn adapt(text: &str) -> String {
    text.replace("cargo run --release --", "herald")
}

/// Runs the commands of one file.
struct Runner {
    file: &'static str,
    dir: TempDir,
    /// Replaces the default port of `push-sink`.
    sink_port: u16,
    /// Address of the server once it listens.
    address: Option<String>,
    /// Address of its operator port once it listens.
    operators: Option<String>,
    background: Vec<(Command, Process)>,
}

impl Runner {
    fn new(file: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(HERALD, dir.path().join("bin/herald")).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self {
            file,
            dir,
            sink_port: free.local_addr().unwrap().port(),
            address: None,
            operators: None,
            background: Vec::new(),
        }
    }

    fn start(&self, command: &Command) -> Process {
        let mut text = adapt(&command.text);
        if let Some(address) = &self.address {
            text = text.replace(ADDRESS, address);
        }
        if text.starts_with("herald push-sink") && !text.contains("--listen") {
            let listen = format!("herald push-sink --listen 127.0.0.1:{}", self.sink_port);
            text = text.replacen("herald push-sink", &listen, 1);
        }
        let mut path = vec![
            self.dir.path().join("bin"),
            PathBuf::from(ROOT).join("target/tools/bin"),
        ];
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let data = self.dir.path().join("data");
        let mut variables = vec![
            ("PATH", std::env::join_paths(path).unwrap()),
            ("HERALD_DATA_DIR", data.into()),
            ("HERALD_GRPC", "127.0.0.1:0".into()),
            ("HERALD_OPERATOR_GRPC", "127.0.0.1:0".into()),
            ("HERALD_HTTP", "127.0.0.1:0".into()),
            ("HERALD_NATS__PORT", "0".into()),
        ];
        variables.extend(
            self.address
                .iter()
                .map(|address| ("HERALD_SERVER", address.into())),
        );
        variables.extend(
            self.operators
                .iter()
                .map(|address| ("HERALD_OPERATOR_SERVER", address.into())),
        );
        Process::start(&text, ROOT, &variables)
    }

    /// Output of a process, with the server's address replaced by the one on the pages.
    fn output(&self, process: &Process) -> String {
        let output = process.stdout();
        let found = [(&self.address, ADDRESS), (&self.operators, OPERATOR_ADDRESS)];
        found
            .into_iter()
            .fold(output, |output, (address, on_page)| match address {
                Some(address) => output.replace(address.as_str(), on_page),
                None => output,
            })
    }

    async fn run(&mut self, command: Command) {
        let mode = run_mode(&command);
        let Some(mode) = mode else {
            panic!(
                "{}:{}: add `{}` to the run modes in tests/it/readme",
                self.file, command.line, command.text
            )
        };
        if mode == Mode::Skip {
            return;
        }
        let limit = match mode {
            Mode::RetryUntilMatch | Mode::UntilMatch => VISIBLE_LIMIT,
            _ => LIMIT,
        };
        let end = Instant::now() + limit;
        let mut process = self.start(&command);
        match mode {
            Mode::Skip => {}
            Mode::UntilExit => {
                let code = process.wait_exit(end).await;
                if code != Some(0) || !command.matches(&self.output(&process)) {
                    self.fail(&command, &process);
                }
            }
            Mode::RetryUntilMatch => loop {
                let code = process.wait_exit(Instant::now() + LIMIT).await;
                if code == Some(0) && command.matches(&self.output(&process)) {
                    break;
                }
                if Instant::now() >= end {
                    self.fail(&command, &process);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                process = self.start(&command);
            },
            Mode::UntilMatch => {
                self.wait(&command, &mut process, end, Command::matches_start)
                    .await;
                self.interrupt(&command, process).await;
            }
            Mode::Background => {
                self.wait(&command, &mut process, end, Command::matches_first_line)
                    .await;
                if let Some(address) = address(&process.stdout(), "gRPC") {
                    self.address = Some(address);
                }
                if let Some(address) = address(&process.stdout(), "operators") {
                    self.operators = Some(address);
                }
                self.background.push((command, process));
            }
        }
    }

    /// Waits until the output of a running process satisfies `is_expected`.
    async fn wait(
        &self,
        command: &Command,
        process: &mut Process,
        end: Instant,
        is_expected: fn(&Command, &str) -> bool,
    ) {
        while !is_expected(command, &self.output(process)) {
            if Instant::now() >= end || process.has_exited() {
                self.fail(command, process);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks the output of the background processes and interrupts them, the newest first.
    async fn finish(mut self) {
        while let Some((command, mut process)) = self.background.pop() {
            let end = Instant::now() + VISIBLE_LIMIT;
            self.wait(&command, &mut process, end, Command::matches_start)
                .await;
            self.interrupt(&command, process).await;
        }
    }

    /// Interrupts a process as Ctrl-C does; the process must exit with 0.
    async fn interrupt(&self, command: &Command, mut process: Process) {
        process.interrupt();
        if process.wait_exit(Instant::now() + LIMIT).await != Some(0) {
            self.fail(command, &process);
        }
    }

    fn fail(&self, command: &Command, process: &Process) -> ! {
        let mut text = format!(
            "{}:{}: `{}` failed or its output differs.\nExpected:\n{}\nStandard output:\n{}\nStandard error:\n{}",
            self.file,
            command.line,
            command.text,
            command.expected.join("\n"),
            self.output(process),
            process.stderr(),
        );
        for (command, process) in &self.background {
            let _ = write!(
                text,
                "\nStandard error of `{}`:\n{}",
                command.text,
                process.stderr()
            );
        }
        panic!("{text}");
    }
}

/// The address of a port in the output of `herald up`.
fn address(output: &str, port: &str) -> Option<String> {
    let mut lines = output.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next()? == port).then(|| words.next().map(str::to_owned))?)
}

fn read_commands(file: &str) -> Vec<Command> {
    let text = std::fs::read_to_string(PathBuf::from(ROOT).join(file)).unwrap();
    parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn command_output_matches_the_readmes() {
    // The examples come first: they download tools that README.md requires.
    for file in ["examples/README.md", "README.md"] {
        let mut runner = Runner::new(file);
        let commands = read_commands(file);
        assert!(!commands.is_empty(), "{file} has no commands");
        for command in commands {
            runner.run(command).await;
        }
        runner.finish().await;
    }
}

#[test]
fn other_readmes_have_no_commands() {
    let mut read = 0;
    for folder in ["services", "crates", "examples"] {
        for entry in std::fs::read_dir(PathBuf::from(ROOT).join(folder)).unwrap() {
            let page = entry.unwrap().path().join("README.md");
            let Ok(text) = std::fs::read_to_string(&page) else {
                continue;
            };
            read += 1;
            assert_eq!(parse(&text), Ok(Vec::new()), "{}", page.display());
        }
    }
    assert!(read > 0);
}

#[test]
fn an_unknown_command_has_no_run_mode() {
    let mode_of = |text: &str| {
        let markdown = format!("```console\n$ {text}\n```\n");
        run_mode(&parse(&markdown).unwrap()[0])
    };
    assert_eq!(mode_of("docker run herald"), None);
    assert_eq!(mode_of("cargo build"), None);
    assert_eq!(mode_of("examples/ruby/run"), None);
    assert_eq!(mode_of("cargo test --workspace  # all"), Some(Mode::Skip));
    assert_eq!(mode_of("cargo run --release -- up"), Some(Mode::Background));
    assert_eq!(mode_of("herald lag --watch  # why"), Some(Mode::UntilMatch));
    assert_eq!(mode_of("herald dlq groups"), Some(Mode::RetryUntilMatch));
    assert_eq!(mode_of("herald dlq redrive 1"), Some(Mode::UntilExit));
}
