//! The `herald` program.

/// mimalloc: with glibc's allocator, redrives spent a third of their CPU time in it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    herald::main()
}
