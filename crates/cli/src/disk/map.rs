//! `maru disk map`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use disk::tool::{self, Segment, ToolError, Where};
use serde::Serialize;

use super::format::FormatName;
use crate::output::Output;
use crate::yaml::to_yaml;

const AFTER_HELP: &str = "\
EXAMPLES
  maru disk map web1.vhdx
  maru disk map web1.vhdx -o json | jq '.[] | select(.depth == 0)'";

/// Show where each part of a disk is
///
/// Depth 0 is the disk's own file, 1 its parent, and so on.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct MapArgs {
    /// The disk
    path: PathBuf,
    /// What the file means (by its extension when left out)
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A part of the disk, as JSON.
#[derive(Serialize)]
struct View<'a> {
    start: u64,
    length: u64,
    depth: usize,
    data: bool,
    offset: Option<u64>,
    file: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Debug, thiserror::Error)]
enum MapError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Prints where the disk's parts are.
pub fn run(args: &MapArgs) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut is_first = true;
    let format = FormatName::or_extension(args.format, &args.path);
    let result = tool::map(&args.path, format, |segment, files| {
        let view = view(segment, files);
        match (args.output, is_first) {
            (Output::Text, true) => writeln!(out, "{:>16} {:>16} {:>5} {:>16}  file", "start", "length", "depth", "offset")?,
            (Output::Json, true) => write!(out, "[")?,
            (Output::Json, false) => write!(out, ",")?,
            (Output::Text, false) | (Output::Yaml, _) => {}
        }
        is_first = false;
        match args.output {
            Output::Json => write!(out, "\n  {}", serde_json::to_string(&view).map_err(io::Error::from)?)?,
            Output::Yaml => write!(out, "{}", to_yaml(&serde_json::to_value([view]).map_err(io::Error::from)?))?,
            Output::Text => {
                let offset = view.offset.map_or(if view.data { "-" } else { "zeros" }.to_owned(), |it| it.to_string());
                let file = view.file.unwrap_or_default();
                writeln!(out, "{:>16} {:>16} {:>5} {offset:>16}  {file}", view.start, view.length, view.depth)?;
            }
        }
        Ok::<(), MapError>(())
    });
    match result {
        Err(MapError::Tool(error)) => return Err(error.into()),
        Err(MapError::Output(error)) => return Err(error.into()),
        Ok(()) => {}
    }
    if args.output == Output::Json {
        out.write_all(b"\n]\n")?;
    }
    Ok(out.flush()?)
}

fn view<'a>(segment: &Segment, files: &'a [PathBuf]) -> View<'a> {
    let (depth, data, offset) = match segment.place {
        Where::File { depth, offset } => (depth, true, Some(offset)),
        Where::Zero { depth } => (depth, false, None),
        Where::Foreign | Where::Below => (0, true, None),
    };
    let file = files.get(depth).filter(|_| data).map(|it| it.to_string_lossy());
    View { start: segment.offset, length: segment.length, depth, data, offset, file }
}
