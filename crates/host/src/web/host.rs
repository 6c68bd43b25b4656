//! The host itself.

use axum::Json;
use axum::extract::State;

use super::{App, Refusal};
use crate::records::VmRecord;

/// The host
#[utoipa::path(get, path = "/host", tag = "host", operation_id = "show_host", responses(
    (status = 200, description = "The host", body = api::HostInfo),
    (status = "default", description = "Not done", body = api::Error),
))]
pub async fn show(State(app): State<App>) -> Result<Json<api::HostInfo>, Refusal> {
    let vms = app.host.state.run(|state| state.all::<VmRecord>()).await?;
    let runs =
        |vm: &uuid::Uuid| !matches!(app.host.live(*vm).state, api::VmState::Off | api::VmState::Saved | api::VmState::Unknown);
    let running = vms.iter().filter(|vm| runs(&vm.record.id)).count();
    let (memory_bytes, memory_available_bytes) = memory();
    Ok(Json(api::HostInfo {
        name: host_name(),
        names: app.names.to_vec(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: app.host.started_at,
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes,
        memory_available_bytes,
        vms: vms.len() as u32,
        vms_running: running as u32,
    }))
}

/// The host's name.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".into(), |name| name.trim().into())
}

/// Bytes of memory, and those that could be given out.
pub fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (bytes("MemTotal:").unwrap_or(0), bytes("MemAvailable:").unwrap_or(0))
}
