//! `herald topology permissions`: the users of nats-server, one for each role.

use std::fmt::Write as _;

use herald_cli::{context::Context, failure::Failure, output::Show};
use herald_mesh::{NatsUser, Permissions, Topology, TopologyConfig};
use serde::Serialize;

const HEAD: &str = "\
# Users of nats-server for Herald: one a role, with the right to do what the role does and nothing else, and `topology`,
# which makes the streams and consumers. Printed by `herald topology permissions`. Include it in the configuration of
# nats-server, and set each variable to the public NKey of the user (`nk -gen user -pubout`, U...). The processes get the
# seeds (HERALD_NATS__NKEY_SEED_FILE) and nats.topology = \"verify\".
";

/// The users.
#[derive(Debug, Serialize)]
struct Users {
    users: Vec<User>,
}

#[derive(Debug, Serialize)]
struct User {
    name: &'static str,
    key_variable: String,
    permissions: Permissions,
}

impl Show for Users {
    fn text(&self) -> String {
        let mut text = format!("{HEAD}authorization {{\n  users = [\n");
        for user in &self.users {
            user.write(&mut text);
        }
        text.push_str("  ]\n}");
        text
    }
}

impl User {
    fn write(&self, text: &mut String) {
        let Permissions { publish, subscribe } = &self.permissions;
        // Writing to a `String` can't fail.
        let _ = writeln!(text, "    # {}", self.name);
        let _ = writeln!(text, "    {{");
        let _ = writeln!(text, "      nkey: ${}", self.key_variable);
        let _ = writeln!(text, "      permissions: {{");
        for (verb, subjects) in [("publish", publish), ("subscribe", subscribe)] {
            let _ = writeln!(text, "        {verb}: {{ allow: [");
            for subject in subjects {
                let _ = writeln!(text, "          \"{subject}\"");
            }
            let _ = writeln!(text, "        ] }}");
        }
        let _ = writeln!(text, "      }}");
        let _ = writeln!(text, "    }}");
    }
}

pub(super) fn run(context: &Context) -> Result<(), Failure> {
    // The configuration changes no name.
    let topology =
        Topology::new(&TopologyConfig::default()).map_err(|error| Failure::failed(error.to_string()))?;
    let users = NatsUser::ALL.map(|user| User {
        name: user.as_str(),
        key_variable: user.key_variable(),
        permissions: user.permissions(&topology),
    });
    context.output.show(&Users { users: users.into() })
}
