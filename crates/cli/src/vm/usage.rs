//! `maru vm usage`: what VMs have used.

use api::client::Method;
use clap::Args;

use super::manage::segment;
use crate::remote::{RemoteError, TaskArgs, fields, finish, show_one, shown_size, shown_time, table};

const AFTER_HELP: &str = "\
What was used adds up over restarts of the VM, of marud and of the host, until it is reset.

EXAMPLES
  What each VM has used, and all of one:
    maru vm usage
    maru vm usage web

  Begin anew, as at the start of a month:
    maru vm usage web --reset";

/// `maru vm usage`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct UsageArgs {
    /// Its name or id; all VMs if left out
    vm: Option<String>,
    /// Count from now on
    #[arg(long, requires = "vm")]
    reset: bool,
    #[command(flatten)]
    task: TaskArgs,
}

/// Does it.
pub fn run(args: &UsageArgs) -> Result<(), RemoteError> {
    let client = args.task.connect.client()?;
    let Some(vm) = &args.vm else {
        let usage: Vec<api::Usage> = client.list("/usage")?;
        return show_one(args.task.output, &usage, || {
            let row = |usage: &api::Usage| {
                let disk = format!("{} / {}", shown_size(usage.disk_read_bytes), shown_size(usage.disk_written_bytes));
                let net = format!("{} / {}", shown_size(usage.net_received_bytes), shown_size(usage.net_sent_bytes));
                [usage.vm_name.clone(), shown_cpu(usage), shown_size(usage.memory_bytes), disk, net, shown_time(usage.since)]
            };
            table(["NAME", "CPU TIME", "MEMORY", "READ / WRITTEN", "RECEIVED / SENT", "SINCE"], usage.iter().map(row))
        });
    };
    let path = format!("/vms/{}/usage", segment(vm));
    if args.reset {
        let task = client.call(Method::POST, &format!("{path}/reset"), None::<&()>)?;
        return finish(&client, task, &args.task);
    }
    let usage: api::Usage = client.get(&path)?;
    show_one(args.task.output, &usage, || described(&usage))
}

fn shown_cpu(usage: &api::Usage) -> String {
    format!("{:.1} s", usage.cpu_us as f64 / 1e6)
}

fn described(usage: &api::Usage) -> String {
    let running_seconds = usage.running_ms / 1000;
    let average = usage.memory_mib_seconds.checked_div(running_seconds).unwrap_or(0) << 20;
    let both = |one: u64, other: u64, requests: &str| format!("{} in {other} {requests}", shown_size(one));
    fields(&[
        ("since", shown_time(usage.since)),
        ("until", shown_time(usage.at)),
        ("running", format!("{running_seconds} s")),
        ("CPU time", shown_cpu(usage)),
        ("memory now", shown_size(usage.memory_bytes)),
        ("memory at most", shown_size(usage.memory_peak_bytes)),
        ("memory on average", shown_size(average)),
        ("disks read", both(usage.disk_read_bytes, usage.disk_reads, "requests")),
        ("disks written", both(usage.disk_written_bytes, usage.disk_writes, "requests")),
        ("received", both(usage.net_received_bytes, usage.net_received_packets, "packets")),
        ("sent", both(usage.net_sent_bytes, usage.net_sent_packets, "packets")),
    ])
}
