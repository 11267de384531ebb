//! The `herald` program.

fn main() -> std::process::ExitCode {
    herald::main()
}
