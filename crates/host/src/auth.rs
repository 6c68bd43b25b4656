//! Who may use the API: tokens.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use store::{Outcome, Transaction};
use time::OffsetDateTime;

use crate::records::{RoleRecord, TokenRecord};
use crate::state::{Records, State, StateError};

/// The name of the token that the first start makes.
pub const FIRST_TOKEN: &str = "admin";

/// Why there is no first token.
#[derive(Debug, thiserror::Error)]
pub enum FirstTokenError {
    /// The store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file for it.
    #[error("the file for the first token, {}, cannot be written", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No random numbers.
    #[error("the kernel gives no random numbers")]
    Random,
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// A new secret: 256 random bits.
pub fn new_secret() -> Option<String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(format!("maru-{}", hex(&bytes)))
}

/// A token with this secret, as it is stored.
pub fn token(name: &str, role: RoleRecord, secret: &str) -> TokenRecord {
    TokenRecord { name: name.into(), role, secret_sha256: sha256(secret.as_bytes()), created_at: OffsetDateTime::now_utc() }
}

/// The token that has this secret.
pub fn find(state: &State, secret: &str) -> Result<Option<TokenRecord>, StateError> {
    // Hashes are compared, so that the time it takes says nothing about secrets.
    let hash = sha256(secret.as_bytes());
    Ok(state.all::<TokenRecord>()?.into_iter().map(|stored| stored.record).find(|token| token.secret_sha256 == hash))
}

/// Makes a token for an administrator where there is none yet, and writes its secret to a file that only this user can read. Gives
/// whether it did.
pub fn make_first(state: &State, path: &Path) -> Result<bool, FirstTokenError> {
    if !state.all::<TokenRecord>()?.is_empty() {
        return Ok(false);
    }
    let secret = new_secret().ok_or(FirstTokenError::Random)?;
    // First the file: a token whose secret nobody knows would lock everybody out.
    write_private(path, &format!("{secret}\n")).map_err(|source| FirstTokenError::File { path: path.into(), source })?;
    let record = token(FIRST_TOKEN, RoleRecord::Admin, &secret);
    let made = state.commit(&Transaction::new().if_none::<TokenRecord>(FIRST_TOKEN).write(FIRST_TOKEN, &record))?;
    Ok(matches!(made, Outcome::Committed(_)))
}

/// Writes a file for this user's eyes only; a crash leaves the old one or the new one.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}
