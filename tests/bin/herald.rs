//! The `herald` program built for the tests: it has failpoints, the product doesn't.

fn main() -> std::process::ExitCode {
    herald_failpoints::from_environment();
    herald::main()
}
