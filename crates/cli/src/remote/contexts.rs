//! `maru context`: which `marud` to talk to, and as whom.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::client::Client;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{RemoteError, TokenArgs, show_one, table};
use crate::output::Output;

/// Where `marud` keeps its state if nothing else is said.
pub const LOCAL_STATE: &str = "/var/lib/maru";
/// The name of this machine's own `marud`.
const LOCAL: &str = "local";

const AFTER_HELP: &str = "\
Without any context, commands talk to the marud of this machine, with the first token, which root may read.

EXAMPLES
  Talk to the host h1 from elsewhere. Both files come from there: ca.pem is tls/ca.pem of marud's state, and the token was made with
  `maru token create alice --role operator`:
    maru context add h1 --server https://h1:8420 --ca ca.pem --token-file alice.token

  Another host for one command:
    maru vm list --context h2";

/// Subcommands of `maru context`.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum ContextCommand {
    /// Add or replace a context, and use it from now on
    Add {
        /// Its name
        name: String,
        /// The address of marud, like https://h1:8420
        #[arg(long, value_name = "URL")]
        server: String,
        /// The certificate authority of marud (PEM)
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// List contexts
    List {
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Use a context from now on
    Use {
        /// Its name; `local` is the marud of this machine
        name: String,
    },
    /// Forget a context
    Remove {
        /// Its name
        name: String,
    },
}

/// Which `marud`.
#[derive(Debug, Args)]
pub struct Connect {
    /// The context to use instead of the current one; `local` is the marud of this machine
    #[arg(long, value_name = "NAME", env = "MARU_CONTEXT")]
    context: Option<String>,
}

/// The file with the contexts.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    current: Option<String>,
    contexts: BTreeMap<String, Context>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    server: String,
    authority: String,
    secret: String,
}

/// What is shown of a context: not its secret.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    server: &'a str,
    current: bool,
}

impl Connect {
    /// What holds without options.
    pub fn from_env() -> Connect {
        Connect { context: std::env::var("MARU_CONTEXT").ok() }
    }

    /// Whether it is this machine's own.
    pub fn is_local(&self) -> Result<bool, RemoteError> {
        let contexts = Self::contexts()?;
        let name = self.name(&contexts);
        Ok(name == LOCAL && !contexts.contexts.contains_key(name))
    }

    fn contexts() -> Result<Contexts, RemoteError> {
        match path() {
            Ok(path) => Contexts::read(&path),
            // Services have no home.
            Err(_) => Ok(Contexts::default()),
        }
    }

    fn name<'a>(&'a self, contexts: &'a Contexts) -> &'a str {
        self.context.as_deref().or(contexts.current.as_deref()).unwrap_or(LOCAL)
    }

    /// A client of it.
    pub fn client(&self) -> Result<Client, RemoteError> {
        let contexts = Self::contexts()?;
        let name = self.name(&contexts);
        match contexts.contexts.get(name) {
            Some(context) => Ok(Client::new(&context.server, context.authority.as_bytes(), &context.secret)?),
            None if name == LOCAL => Local::find()?.client(),
            None => Err(contexts.missing(name)),
        }
    }
}

/// This machine's `marud`.
pub struct Local {
    /// The file with the first token.
    pub token: PathBuf,
    /// Its secret.
    pub secret: String,
    /// The file with the certificate authority.
    pub authority: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Local {
    /// Looks where it keeps its state.
    pub fn find() -> Result<Local, RemoteError> {
        let in_state = |name| Path::new(LOCAL_STATE).join(name);
        let (token, authority, told) = (in_state("admin.token"), in_state("tls/ca.pem"), in_state(api::ADDRESS_FILE));
        let Ok(secret) = fs::read_to_string(&token) else { return Err(RemoteError::NoServer(token)) };
        let text = String::from_utf8_lossy(&read(&told)?).into_owned();
        let address = text.trim().parse().map_err(|_| RemoteError::Address { path: told, text })?;
        Ok(Local { token, secret: secret.trim().to_owned(), authority, address })
    }

    /// A client of it.
    pub fn client(&self) -> Result<Client, RemoteError> {
        // By its number: names need not be known yet when a host starts.
        let server = format!("https://{}", reachable_from_here(self.address));
        Ok(Client::new(&server, &read(&self.authority)?, &self.secret)?)
    }
}

/// An address for who listens at this one, on the same machine.
fn reachable_from_here(address: SocketAddr) -> SocketAddr {
    // Who listens at all addresses of IPv6 does so at those of IPv4, which more machines have.
    match address.ip().is_unspecified() {
        true => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        false => address,
    }
}

/// All contexts that can be named.
pub fn context_names() -> Vec<String> {
    let contexts = path().and_then(|path| Contexts::read(&path)).unwrap_or_default();
    std::iter::once(LOCAL.to_owned()).chain(contexts.contexts.into_keys().filter(|name| name != LOCAL)).collect()
}

/// Does one thing to the contexts.
pub fn run(command: ContextCommand) -> Result<(), RemoteError> {
    let path = path()?;
    let mut contexts = Contexts::read(&path)?;
    match command {
        ContextCommand::Add { name, server, ca, token } => {
            let authority = String::from_utf8_lossy(&read(&ca)?).into_owned();
            let secret = token.read()?;
            // What cannot work is better said now.
            Client::new(&server, authority.as_bytes(), &secret)?.get::<api::HostInfo>("/host")?;
            contexts.contexts.insert(name.clone(), Context { server, authority, secret });
            contexts.current = Some(name);
        }
        ContextCommand::List { output } => return contexts.show(output),
        ContextCommand::Use { name } => {
            if name != LOCAL && !contexts.contexts.contains_key(&name) {
                return Err(contexts.missing(&name));
            }
            contexts.current = Some(name);
        }
        ContextCommand::Remove { name } => {
            if contexts.contexts.remove(&name).is_none() {
                return Err(contexts.missing(&name));
            }
            contexts.current.take_if(|current| *current == name);
        }
    }
    contexts.write(&path).map_err(|source| RemoteError::File { path, source })
}

fn read(path: &Path) -> Result<Vec<u8>, RemoteError> {
    fs::read(path).map_err(|source| RemoteError::File { path: path.into(), source })
}

fn path() -> Result<PathBuf, RemoteError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    Ok(config.ok_or(RemoteError::NoHome)?.join("maru/contexts.json"))
}

impl Contexts {
    fn read(path: &Path) -> Result<Contexts, RemoteError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|source| RemoteError::Contexts { path: path.into(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(source) => Err(RemoteError::File { path: path.into(), source }),
        }
    }

    /// There are secrets in it: nobody else may read it, not for a moment.
    fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let unfinished = path.with_extension("unfinished");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    }

    fn missing(&self, name: &str) -> RemoteError {
        let known: Vec<&str> = std::iter::once(LOCAL).chain(self.contexts.keys().map(String::as_str)).collect();
        RemoteError::NoContext { name: name.into(), known: known.join(", ") }
    }

    fn show(&self, output: Output) -> Result<(), RemoteError> {
        let current = self.current.as_deref().unwrap_or(LOCAL);
        let mut list: Vec<Shown<'_>> = self
            .contexts
            .iter()
            .map(|(name, context)| Shown { name, server: &context.server, current: name == current })
            .collect();
        if !self.contexts.contains_key(LOCAL) {
            list.insert(0, Shown { name: LOCAL, server: "the marud of this machine", current: current == LOCAL });
        }
        show_one(output, &list, || {
            let row =
                |context: &Shown<'_>| [if context.current { "*" } else { "" }.into(), context.name.into(), context.server.into()];
            table(["", "NAME", "SERVER"], list.iter().map(row))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_here_and_who_does_not_where_he_listens() {
        let of = |address: &str| reachable_from_here(address.parse().unwrap()).to_string();
        assert_eq!(of("[::]:8420"), "127.0.0.1:8420");
        assert_eq!(of("0.0.0.0:9000"), "127.0.0.1:9000");
        assert_eq!(of("192.0.2.7:9000"), "192.0.2.7:9000");
        assert_eq!(of("[::1]:9000"), "[::1]:9000");
    }
}
