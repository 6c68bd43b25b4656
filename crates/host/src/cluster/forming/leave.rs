//! A host that is on its own again.

use std::fs;
use std::io;

use super::{FormingError, Place, file, remove_directory};
use crate::cluster::identity::Identity;

/// Forgets the cluster. The host begins as one that nothing was done on: with an empty store, an authority and a token of its own. Files of
/// VMs stay where they are.
pub(super) fn run(place: &Place) -> Result<(), FormingError> {
    Identity::remove(&place.state)?;
    remove_directory(&place.member())?;
    // Its key is the cluster's.
    remove_directory(&place.tls())?;
    let token = place.state.join("admin.token");
    match fs::remove_file(&token) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(&token)(error)),
        _ => {}
    }
    Ok(place.end_plan()?)
}
