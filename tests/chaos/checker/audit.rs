//! `herald audit` on the same mesh as a second opinion: it must report no findings.

use crate::{herald_program, world::World};

/// Output of a failed audit; empty if it passed.
pub(super) async fn findings(world: &World) -> Vec<String> {
    let program = herald_program();
    let program = program.to_str().expect("a readable path");
    let arguments = [
        "audit",
        "--all",
        "--rpc-timeout",
        "2m",
        "--operator-server",
        &world.herald.gateway().operator_url,
    ];
    let done = harness::run(program, &arguments, &[]).await;
    if done.code == 0 {
        return Vec::new();
    }
    let lines = done.stdout.lines().chain(done.stderr.lines());
    lines
        .filter(|line| !line.trim().is_empty())
        .map(Into::into)
        .collect()
}
