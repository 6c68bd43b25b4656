//! `maru vm control`: tells a running VM what to do.

mod args;
mod console;
mod devices;
mod error;
mod events;
mod layers;
mod save;
mod status;

pub use args::ControlArgs;
pub use error::ControlError;

use std::time::Duration;

use args::{Action, Link};
use serde_json::Value;
use vmm::control::{Client, ClientError, Request, Status};

use crate::output::{Output, print};

/// Does one thing to a running VM.
pub fn run(args: ControlArgs) -> Result<(), ControlError> {
    let connect = |source| ControlError::Connect { path: args.socket.clone(), source };
    let mut client = Client::connect(&args.socket).map_err(connect)?;
    let client = &mut client;
    let simple = |client: &mut Client, request: Request| client.call::<Value>(&request, &[]).map(drop);
    match args.action {
        Action::Status { output } => show_status(client, output)?,
        Action::Config => show_config(client)?,
        Action::Pause => simple(client, Request::Pause)?,
        Action::Resume => simple(client, Request::Resume)?,
        Action::PowerButton => simple(client, Request::PowerButton)?,
        Action::Reset => simple(client, Request::Reset)?,
        Action::Stop => stop(client)?,
        Action::Save { file, force } => save::save(client, &file, force)?,
        Action::AddDisk { disk } => devices::add_disk(client, disk)?,
        Action::AddNet { net } => devices::add_net(client, net)?,
        Action::Remove { id } => {
            simple(client, Request::Remove { id: id.clone() })?;
            eprintln!("the guest was asked to give '{id}' back; `events` and `status` show when it did");
        }
        Action::ResizeDisk { id, size } => simple(client, Request::ResizeDisk { id, bytes: size.0 })?,
        Action::AddLayer { layers } => layers::add(client, layers)?,
        Action::ReplaceParents { id, parent } => layers::replace_parents(client, id, &parent)?,
        Action::MergeLeaf { id, most } => layers::merge_leaf(client, id, most.map(|it| it.0))?,
        Action::LimitDisk { id, limits } => simple(client, Request::SetDiskLimits { id, limits: limits.0 })?,
        Action::LimitNet { id, limits } => simple(client, Request::SetNetLimits { id, limits: limits.0 })?,
        Action::SetCpus { count } => simple(client, Request::SetCpus { count })?,
        Action::SetMemory { more } => simple(client, Request::SetHotplugMemory { bytes: more.0.0 })?,
        Action::SetBalloon { size } => simple(client, Request::SetBalloon { bytes: size.0 })?,
        Action::SetLink { id, link } => simple(client, Request::SetLink { id, up: matches!(link, Link::Up) })?,
        Action::DirtyRate { for_ms } => show_dirty_rate(client, Duration::from_millis(for_ms))?,
        Action::Console => console::attach(client)?,
        Action::Events { output } => events::follow(client, output)?,
    }
    Ok(())
}

fn show_status(client: &mut Client, output: Output) -> Result<(), ControlError> {
    let status: Status = client.call(&Request::Status, &[])?;
    let text = output.render(&status, || status::table(&status)).map_err(ClientError::from)?;
    print(&text).map_err(ControlError::Output)
}

fn show_config(client: &mut Client) -> Result<(), ControlError> {
    let config: Value = client.call(&Request::Config, &[])?;
    print(&json(&config)?).map_err(ControlError::Output)
}

/// Prints the number of pages that changed.
fn show_dirty_rate(client: &mut Client, time: Duration) -> Result<(), ControlError> {
    client.call::<Value>(&Request::StartDirtyLog, &[])?;
    // What changes on the way to the first look does not count.
    client.call::<Value>(&Request::TakeDirtyLog, &[])?;
    std::thread::sleep(time);
    let changed = client.call::<Value>(&Request::TakeDirtyLog, &[]);
    client.call::<Value>(&Request::StopDirtyLog, &[])?;
    print(&format!("{} pages in {} ms\n", changed?["pages"], time.as_millis())).map_err(ControlError::Output)
}

/// A monitor that ends may be gone before its answer is read: that, too, is what was asked for.
fn stop(client: &mut Client) -> Result<(), ControlError> {
    match client.call::<Value>(&Request::Stop, &[]) {
        Ok(_) | Err(ClientError::Gone) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, ControlError> {
    let text = serde_json::to_string_pretty(value).map_err(ClientError::from)?;
    Ok(text + "\n")
}

#[cfg(test)]
mod testing;
