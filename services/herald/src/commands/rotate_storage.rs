//! `herald key rotate-storage`: encrypts all devices with the present storage key.

use herald_cli::{
    context::Context,
    failure::{Failure, Kind},
    output::{Show, counted},
};
use herald_proto::mesh_v1::RotateStorageKeyRequest;
use herald_runtime::telemetry::error_chain;
use herald_store::encryption::RotationProgress;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{
    backup::{connect, refused},
    installation::StoreInstallation,
};
use crate::server::{Config, ControlClient, control_socket, rotate_storage_key};

const LONG: &str = "\
Encrypts what all devices hold (endpoints, Web Push keys, webhook secrets) with the storage key store.encryption.key, while \
pushes and registrations go on. Devices that are encrypted with it already are skipped, so an interrupted rotation continues \
when the command runs again. In the end it names the keys that can be removed from store.encryption.previous_keys.

Of `herald up`, the command finds the process by the socket `control.sock` in its data directory, so it runs on the same \
machine, as the same user; the store of a stopped process is encrypted, too. Of `herald serve` on many machines, it connects \
to PostgreSQL, and needs the keys that the processes have.

To replace a key:
  1. Add the new key to store.encryption.previous_keys, and restart all processes: they can read what it encrypts.
  2. Make it store.encryption.key, add the old one to store.encryption.previous_keys, and restart all processes.
  3. Run `herald key rotate-storage`.
  4. Remove the old key. Keep it as long as you keep backups that need it.
One process needs no step 1. The key that `herald up` made itself is the file storage.key of its data directory: set \
store.encryption.key to the new key, restart, rotate, and move the file away.";

const EXAMPLES: &str = "\
Examples:
  openssl rand -base64 32 > new.key
  HERALD_STORE__ENCRYPTION__KEY_FILE=new.key herald up
  herald key rotate-storage
  On many machines:
    HERALD_STORE__ENCRYPTION__KEY_FILE=new.key HERALD_STORE__ENCRYPTION__PREVIOUS_KEYS_FILE=old.key \\
        herald key rotate-storage --store postgres://localhost/herald";

/// Encrypt all devices with the present storage key
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    installation: StoreInstallation,
}

/// The result.
#[derive(Debug, Serialize)]
struct RotationResult {
    key_id: String,
    user_count: u64,
    /// Users whose devices were encrypted; those of the others were already.
    encrypted_user_count: u64,
    /// The keys that are not needed any more.
    forgotten_key_ids: Vec<String>,
}

impl Show for RotationResult {
    fn text(&self) -> String {
        let forgotten = if self.forgotten_key_ids.is_empty() {
            String::new()
        } else {
            format!(
                "\nRemove the storage key {} from store.encryption.previous_keys (or move storage.key away); backups that were \
                 made before still need it.",
                self.forgotten_key_ids.join(", ")
            )
        };
        format!(
            "the devices of {} are encrypted with the storage key {}, those of {} since now{forgotten}",
            counted(self.user_count, "user", "users"),
            self.key_id,
            counted(self.encrypted_user_count, "user", "users"),
        )
    }
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let config = args.installation.config(context.global.config.as_deref())?;
    let bar = context
        .output
        .progress_bar(Some(0), "{bar:40} {pos}/{len} users  {elapsed}");
    let process = if config.store.is_cluster() {
        None
    } else {
        connect(&control_socket(&config.data_dir)).await?
    };
    let result = match process {
        Some(process) => ask(process, &bar).await,
        None => rotate(&config, &bar).await,
    };
    bar.finish_and_clear();
    context.output.show(&result?)
}

/// Lets a running process do it.
async fn ask(mut process: ControlClient, bar: &ProgressBar) -> Result<RotationResult, Failure> {
    let answers = process.calls.rotate_storage_key(RotateStorageKeyRequest {}).await;
    let mut answers = answers.map_err(|status| refused(&process, status))?.into_inner();
    while let Some(now) = answers
        .message()
        .await
        .map_err(|status| refused(&process, status))?
    {
        report(bar, now.user_count, now.user_count_total);
        if now.done {
            return Ok(RotationResult {
                key_id: now.key_id,
                user_count: now.user_count,
                encrypted_user_count: now.encrypted_user_count,
                forgotten_key_ids: now.forgotten_key_ids,
            });
        }
    }
    Err(
        Failure::new(Kind::Interrupted, "the process stopped during the rotation")
            .hint("start it again and run the command again: it continues where it stopped"),
    )
}

/// Does it without another process.
async fn rotate(config: &Config, bar: &ProgressBar) -> Result<RotationResult, Failure> {
    let shown = bar.clone();
    let progress = move |now: RotationProgress| report(&shown, now.users, now.users_estimated);
    let rotated = rotate_storage_key(config, &progress).await;
    let rotated = rotated.map_err(|error| Failure::failed(error_chain(error.as_ref())))?;
    Ok(RotationResult {
        key_id: rotated.key.to_string(),
        user_count: rotated.users,
        encrypted_user_count: rotated.resealed,
        forgotten_key_ids: rotated.forgotten.iter().map(ToString::to_string).collect(),
    })
}

fn report(bar: &ProgressBar, users: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(users);
}
