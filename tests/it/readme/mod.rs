//! The commands of README.md and examples/README.md, run as they stand there, in order, on an empty data directory.

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

/// How long a command may take. The first run of a server or an example fetches nats-server or its tools, and may build them.
const LIMIT: Duration = Duration::from_mins(10);

/// How long what a command reads may take to become visible.
const VISIBLE_LIMIT: Duration = Duration::from_mins(1);

/// Where the pages say that a server listens. The test's server listens on a free port instead.
const ADDRESS: &str = "127.0.0.1:7700";

/// Commands that are not run, and why.
const NOT_RUN: [(&str, &str); 1] = [("cargo test --workspace", "it is what runs this test")];

/// How a command is run.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// Not at all.
    Not,
    /// To its end.
    ToItsEnd,
    /// Likewise, and again until its output is the one shown: it reads what becomes visible a moment after the command
    /// before it was answered.
    UntilShown,
    /// Until its output is the one shown: it would go on until Ctrl-C.
    UntilSeen,
    /// Beside all that follow: it has a terminal of its own.
    Beside,
}

/// How to run a command. `None`: this test doesn't know, and must be told.
fn way(command: &Command) -> Option<Way> {
    let text = command.without_comment();
    if NOT_RUN.iter().any(|(not_run, _)| *not_run == text) {
        return Some(Way::Not);
    }
    let text = adapted(text);
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["herald", "up" | "push-sink", ..] => Some(Way::Beside),
        ["herald", _, ..] if words.contains(&"--watch") => Some(Way::UntilSeen),
        ["herald", "timeline" | "lag", ..]
        | ["herald", "dlq", "groups" | "list" | "show" | "history", ..] => Some(Way::UntilShown),
        ["herald", _, ..] | ["grpcurl", ..] | ["examples/python/run" | "examples/grpcurl/run"] => {
            Some(Way::ToItsEnd)
        }
        _ => None,
    }
}

/// The command with the program that cargo built for the tests in place of the one that it would build.
fn adapted(text: &str) -> String {
    text.replace("cargo run --release --", "herald")
}

/// Runs the commands of one file.
struct Run {
    file: &'static str,
    dir: TempDir,
    /// The port that stands for `push-sink`'s default one.
    sink_port: u16,
    /// Where the server listens, once it does.
    address: Option<String>,
    beside: Vec<(Command, Process)>,
}

impl Run {
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
            beside: Vec::new(),
        }
    }

    fn start(&self, command: &Command) -> Process {
        let mut text = adapted(&command.text);
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
            ("HERALD_HTTP", "127.0.0.1:0".into()),
            ("HERALD_NATS__PORT", "0".into()),
        ];
        variables.extend(
            self.address
                .iter()
                .map(|address| ("HERALD_SERVER", address.into())),
        );
        Process::start(&text, ROOT, &variables)
    }

    /// What a process printed, with the address that the file has.
    fn output(&self, process: &Process) -> String {
        let output = process.stdout();
        match &self.address {
            Some(address) => output.replace(address.as_str(), ADDRESS),
            None => output,
        }
    }

    async fn run(&mut self, command: Command) {
        let way = way(&command);
        let Some(way) = way else {
            panic!(
                "{}:{}: tell tests/it/readme how to run `{}`",
                self.file, command.line, command.text
            )
        };
        if way == Way::Not {
            return;
        }
        let limit = match way {
            Way::UntilShown | Way::UntilSeen => VISIBLE_LIMIT,
            _ => LIMIT,
        };
        let end = Instant::now() + limit;
        let mut process = self.start(&command);
        match way {
            Way::Not => {}
            Way::ToItsEnd => {
                let code = process.ended(end).await;
                if code != Some(0) || !command.is_output(&self.output(&process)) {
                    self.fail(&command, &process);
                }
            }
            Way::UntilShown => loop {
                let code = process.ended(Instant::now() + LIMIT).await;
                if code == Some(0) && command.is_output(&self.output(&process)) {
                    break;
                }
                if Instant::now() >= end {
                    self.fail(&command, &process);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                process = self.start(&command);
            },
            Way::UntilSeen => {
                self.wait(&command, &mut process, end, Command::begins).await;
                self.interrupt(&command, process).await;
            }
            Way::Beside => {
                self.wait(&command, &mut process, end, Command::has_begun).await;
                if let Some(address) = served_at(&process.stdout()) {
                    self.address = Some(address);
                }
                self.beside.push((command, process));
            }
        }
    }

    /// Waits until the output of a process that goes on is as wished.
    async fn wait(
        &self,
        command: &Command,
        process: &mut Process,
        end: Instant,
        wished: fn(&Command, &str) -> bool,
    ) {
        while !wished(command, &self.output(process)) {
            if Instant::now() >= end || process.has_ended() {
                self.fail(command, process);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends what runs beside the others, the youngest first. By then it has printed all that the file shows.
    async fn finish(mut self) {
        while let Some((command, mut process)) = self.beside.pop() {
            let end = Instant::now() + VISIBLE_LIMIT;
            self.wait(&command, &mut process, end, Command::begins).await;
            self.interrupt(&command, process).await;
        }
    }

    /// Ctrl-C.
    async fn interrupt(&self, command: &Command, mut process: Process) {
        process.interrupt();
        if process.ended(Instant::now() + LIMIT).await != Some(0) {
            self.fail(command, &process);
        }
    }

    fn fail(&self, command: &Command, process: &Process) -> ! {
        let mut text = format!(
            "{}:{}: `{}` didn't print what is shown, or didn't succeed.\nShown:\n{}\nStandard output:\n{}\nStandard error:\n{}",
            self.file,
            command.line,
            command.text,
            command.expected.join("\n"),
            self.output(process),
            process.stderr(),
        );
        for (command, process) in &self.beside {
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

/// The address in what `herald up` prints when it is ready.
fn served_at(output: &str) -> Option<String> {
    let mut lines = output.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next()? == "gRPC").then(|| words.next().map(str::to_owned))?)
}

fn commands_of(file: &str) -> Vec<Command> {
    let text = std::fs::read_to_string(PathBuf::from(ROOT).join(file)).unwrap();
    parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_print_what_the_readmes_show() {
    // The examples come first: they fetch the tools that the other page takes for given.
    for file in ["examples/README.md", "README.md"] {
        let mut run = Run::new(file);
        let commands = commands_of(file);
        assert!(!commands.is_empty(), "{file} has no commands");
        for command in commands {
            run.run(command).await;
        }
        run.finish().await;
    }
}

#[test]
fn no_other_readme_has_commands_that_nobody_runs() {
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
fn a_command_that_is_new_must_be_told_how_to_run() {
    let way_of = |text: &str| {
        let markdown = format!("```console\n$ {text}\n```\n");
        way(&parse(&markdown).unwrap()[0])
    };
    assert_eq!(way_of("docker run herald"), None);
    assert_eq!(way_of("cargo build"), None);
    assert_eq!(way_of("examples/ruby/run"), None);
    assert_eq!(way_of("cargo test --workspace  # all"), Some(Way::Not));
    assert_eq!(way_of("cargo run --release -- up"), Some(Way::Beside));
    assert_eq!(way_of("herald lag --watch  # why"), Some(Way::UntilSeen));
    assert_eq!(way_of("herald dlq groups"), Some(Way::UntilShown));
    assert_eq!(way_of("herald dlq redrive 1"), Some(Way::ToItsEnd));
}
