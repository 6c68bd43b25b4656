//! `maru port capture`.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use api::client::Client as Remote;
use clap::{Args, ValueEnum};
use serde_json::Value;
use switch::acl::Direction;
use switch::control::{Client, Request, Streamed};
use switch::frame::MAX_FRAME_BYTES;
use switch::pcapng::Writer;

use super::place::{Place, Where, card_path};
use crate::terminal::stop_on_thread;

/// What is written at once, in bytes.
const PIECE: usize = 64 << 10;

pub(super) const HELP: &str = "\
EXAMPLES
  The next thousand frames of a port:
    maru port capture web/net0 --file web.pcapng --count 1000

  As they pass:
    maru port capture web/net0 --file - | tcpdump -r -";

/// What to capture.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    #[command(flatten)]
    place: Where,
    /// The port: VM/CARD
    #[arg(value_name = "PORT")]
    port_name: String,
    /// Where to write the frames, as pcapng; - is standard output
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// How many; default: until it is interrupted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// For how long, in seconds; marud ends it after an hour, or 1 GiB
    #[arg(long, value_name = "N", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
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
    match args.place.find()? {
        Place::Direct(client) => direct(client, args),
        Place::Managed(client) => managed(&client, &args),
    }
}

fn open(file: &Path) -> anyhow::Result<Box<dyn Write>> {
    Ok(match file.as_os_str() == "-" {
        true => Box::new(io::stdout()),
        false => Box::new(File::create(file).with_context(|| format!("cannot make {}", file.display()))?),
    })
}

/// What `marud` sends is the file.
fn managed(client: &Remote, args: &CaptureArgs) -> anyhow::Result<()> {
    let wanted = api::NewCapture {
        seconds: args.seconds,
        direction: match args.direction {
            Ways::In => Some(api::Direction::Inbound),
            Ways::Out => Some(api::Direction::Outbound),
            Ways::Both => None,
        },
        count: args.count,
        snap_bytes: Some(args.snaplen),
        max_bytes: None,
    };
    let mut seen = client.stream(&card_path(&args.port_name, "/capture")?, &wanted)?;
    let mut out = open(&args.file)?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = seen.read(&mut piece).context("the capture has broken off; what came is in the file")?;
        if count == 0 {
            return Ok(());
        }
        let written = out.write_all(&piece[..count]).and_then(|()| out.flush());
        written.with_context(|| format!("cannot write {}", args.file.display()))?;
    }
}

fn direct(mut client: Client, args: CaptureArgs) -> anyhow::Result<()> {
    let CaptureArgs { place: _, port_name: name, file, count, seconds, snaplen, direction } = args;
    let direction = match direction {
        Ways::In => Some(Direction::Inbound),
        Ways::Out => Some(Direction::Outbound),
        Ways::Both => None,
    };
    client.call::<Value>(&Request::Capture { name: name.clone(), direction, count, snap_bytes: snaplen as usize })?;
    let out = open(&file)?;
    let over = client.stopper().context("watching the time")?;
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(seconds.into()));
        over.stop();
    });
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
                for frame in frames {
                    let written = writer.captured(&frame).with_context(failed)?;
                    written.context("the switch sent something that is no frame")?;
                    received += 1;
                    last = frame.at_ns;
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
