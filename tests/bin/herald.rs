//! The `herald` program, under the name by which the tests find it, and with the failpoints that the product doesn't have.

fn main() -> std::process::ExitCode {
    herald_failpoints::from_environment();
    herald::main()
}
