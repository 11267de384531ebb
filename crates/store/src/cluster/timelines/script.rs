//! Scripts that run inside of Redis.

use redis::Cmd;

/// A Lua script that runs inside of Redis.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: sha1_smol::Sha1::from(text).digest().to_string(),
        }
    }
}

/// A script with the keys and arguments of one call.
pub(super) struct ScriptCall<'a> {
    pub(super) script: &'a Script,
    pub(super) keys: &'a [&'a str],
    pub(super) arguments: Vec<Vec<u8>>,
}

impl ScriptCall<'_> {
    /// The call as `EVAL` or `EVALSHA`.
    pub(super) fn command(&self, name: &str) -> Cmd {
        let mut cmd = redis::cmd(name);
        if name == "EVAL" {
            cmd.arg(self.script.text);
        } else {
            cmd.arg(&self.script.hash);
        }
        cmd.arg(self.keys.len());
        for key in self.keys {
            cmd.arg(*key);
        }
        for argument in &self.arguments {
            cmd.arg(argument.as_slice());
        }
        cmd
    }
}
