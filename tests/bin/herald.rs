//! The `herald` program, under the name by which the tests find it.

fn main() -> std::process::ExitCode {
    herald::main()
}
