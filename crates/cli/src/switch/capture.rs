//! `maru port capture`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::Value;
use switch::acl::Direction;
use switch::control::{CapturedFrame, Request, Streamed};
use switch::frame::MAX_FRAME_BYTES;
use switch::hex::from_hex;

use super::Socket;
use super::pcapng::{Way, Writer};
use crate::terminal::stop_on_thread;

pub(super) const HELP: &str = "\
EXAMPLES
  The next thousand frames of a port:
    maru port capture web --file web.pcapng --count 1000

  As they pass:
    maru port capture web --file - | tcpdump -r -";

/// What to capture.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    #[command(flatten)]
    socket: Socket,
    /// The port
    name: String,
    /// Where to write the frames, as pcapng; - is standard output
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// How many; default: until it is interrupted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// So much of each frame
    #[arg(long, value_name = "BYTES", default_value_t = MAX_FRAME_BYTES as u32)]
    snaplen: u32,
    /// Which way they go
    #[arg(long, value_enum, default_value_t)]
    direction: Ways,
}

/// Seen from the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Ways {
    /// To the VM
    In,
    /// From the VM
    Out,
    /// Both
    #[default]
    Both,
}

pub(super) fn run(args: CaptureArgs) -> anyhow::Result<()> {
    let CaptureArgs { socket, name, file, count, snaplen, direction } = args;
    let mut client = socket.connect()?;
    let direction = match direction {
        Ways::In => Some(Direction::Inbound),
        Ways::Out => Some(Direction::Outbound),
        Ways::Both => None,
    };
    client.call::<Value>(&Request::Capture { name: name.clone(), direction, count, snap_bytes: snaplen as usize })?;
    let out: Box<dyn Write> = if file.as_os_str() == "-" {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&file).with_context(|| format!("cannot make {}", file.display()))?)
    };
    let failed = || format!("cannot write {}", file.display());
    let mut writer = Writer::new(BufWriter::new(out), &name, snaplen).with_context(failed)?;
    let stopper = client.stopper().context("watching for signals")?;
    stop_on_thread(move || {
        stopper.stop();
        // The end comes from the switch.
        loop {
            std::thread::park();
        }
    })
    .context("watching for signals")?;
    let (mut received, mut last) = (0, 0);
    loop {
        match client.receive()? {
            Streamed::Frames { frames } => {
                for CapturedFrame { at_ns, direction, length, bytes } in frames {
                    let way = if direction == Direction::Inbound { Way::In } else { Way::Out };
                    let bytes = from_hex(&bytes).context("the switch sent something that is no frame")?;
                    writer.packet(at_ns, way, &bytes, length as u32).with_context(failed)?;
                    received += 1;
                    last = at_ns;
                }
                writer.flush().with_context(failed)?;
            }
            Streamed::End { missed } => {
                writer.finish(last, received, missed).with_context(failed)?;
                eprintln!("{received} frames; {missed} more passed, for which there was no room");
                return Ok(());
            }
            Streamed::Trace(_) => {}
        }
    }
}
