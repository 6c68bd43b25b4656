//! `maru context`: which `marud` to talk to, and as whom.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::ClusterStatus;
use api::client::{Client, ClientError};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::servers::Servers;
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

  Any host of a cluster answers for all, and tells who the others are. If one does not answer, another one is asked:
    maru context add plant --server https://h1:8420 --server https://h2:8420 --ca ca.pem --token-file alice.token

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
        /// The address of marud, like https://h1:8420; several times for several hosts of a cluster
        #[arg(long, value_name = "URL", required = true)]
        server: Vec<String>,
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

#[derive(Clone, Serialize, Deserialize)]
struct Context {
    #[serde(flatten)]
    servers: Servers,
    authority: String,
    secret: String,
}

/// What is shown of a context: not its secret.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    server: &'a str,
    /// Other hosts of its cluster, which are asked if that one does not answer.
    others: usize,
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

    /// A client of it, and of the other hosts of its cluster, if it has some.
    pub fn client(&self) -> Result<Client, RemoteError> {
        let Some((name, context)) = self.context()? else { return Local::find()?.client() };
        if !context.servers.are_old(OffsetDateTime::now_utc()) {
            return context.client(&name);
        }
        match context.client(&name)?.get::<ClusterStatus>("/cluster") {
            Ok(status) => change_servers(&name, &context, |servers, now| servers.learn(&status, now)),
            // It would be the same once more.
            Err(error @ ClientError::Unreachable { .. }) => return Err(error.into()),
            Err(_) => change_servers(&name, &context, Servers::learn_nothing),
        }
        self.context()?.map_or(context, |(_, context)| context).client(&name)
    }

    /// A client of the one host that it names, for what is about that host alone: no other one can answer for it.
    pub fn host(&self) -> Result<Client, RemoteError> {
        let Some((name, context)) = self.context()? else { return Local::find()?.client() };
        let Some(server) = context.servers.only() else { return Err(RemoteError::NotOneHost(name)) };
        Ok(Client::new(server, context.authority.as_bytes(), &context.secret)?)
    }

    /// Takes up what a host has said of its cluster.
    pub fn learn(&self, status: &ClusterStatus) -> Result<(), RemoteError> {
        if let Some((name, context)) = self.context()? {
            change_servers(&name, &context, |servers, now| servers.learn(status, now));
        }
        Ok(())
    }

    /// The context with its name; none for this machine.
    fn context(&self) -> Result<Option<(String, Context)>, RemoteError> {
        let contexts = Self::contexts()?;
        let name = self.name(&contexts);
        match contexts.contexts.get(name) {
            Some(context) => Ok(Some((name.to_owned(), context.clone()))),
            None if name == LOCAL => Ok(None),
            None => Err(contexts.missing(name)),
        }
    }
}

impl Context {
    fn client(&self, name: &str) -> Result<Client, RemoteError> {
        let servers = self.servers.all(OffsetDateTime::now_utc());
        let client = Client::of_cluster(servers, self.authority.as_bytes(), &self.secret)?;
        let (name, context) = (name.to_owned(), self.clone());
        Ok(client.when_moved(move |server| change_servers(&name, &context, |servers, now| servers.note(server, now))))
    }
}

/// Changes what is known of the servers of a context, if it is still that context. What cannot be written costs time at the next command.
fn change_servers(name: &str, context: &Context, edit: impl FnOnce(&mut Servers, OffsetDateTime)) {
    let _ = path().and_then(|path| {
        change(&path, |contexts| {
            let is_same = |found: &&mut Context| found.authority == context.authority && found.secret == context.secret;
            if let Some(found) = contexts.contexts.get_mut(name).filter(is_same) {
                edit(&mut found.servers, OffsetDateTime::now_utc());
            }
            Ok(())
        })
    });
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
    match command {
        ContextCommand::Add { name, mut server, ca, token } => {
            let authority = String::from_utf8_lossy(&read(&ca)?).into_owned();
            let secret = token.read()?;
            // What cannot work is better said now.
            let status = Client::of_cluster(server.clone(), authority.as_bytes(), &secret)?.get::<ClusterStatus>("/cluster")?;
            let mut servers = Servers::named(server.remove(0), server);
            servers.learn(&status, OffsetDateTime::now_utc());
            change(&path, |contexts| {
                contexts.contexts.insert(name.clone(), Context { servers, authority, secret });
                contexts.current = Some(name);
                Ok(())
            })
        }
        ContextCommand::List { output } => Contexts::read(&path)?.show(output),
        ContextCommand::Use { name } => change(&path, |contexts| {
            if name != LOCAL && !contexts.contexts.contains_key(&name) {
                return Err(contexts.missing(&name));
            }
            contexts.current = Some(name);
            Ok(())
        }),
        ContextCommand::Remove { name } => change(&path, |contexts| {
            if contexts.contexts.remove(&name).is_none() {
                return Err(contexts.missing(&name));
            }
            contexts.current.take_if(|current| *current == name);
            Ok(())
        }),
    }
}

/// Changes the contexts. Whoever else does so meanwhile waits, and loses nothing.
fn change(path: &Path, edit: impl FnOnce(&mut Contexts) -> Result<(), RemoteError>) -> Result<(), RemoteError> {
    let failed = |source| RemoteError::File { path: path.into(), source };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(path.with_extension("lock"));
    let lock = lock.map_err(failed)?;
    // Where a file system has no locks, one of two who change at the same time wins.
    let _ = lock.lock();
    let mut contexts = Contexts::read(path)?;
    edit(&mut contexts)?;
    contexts.write(path).map_err(failed)
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
            .map(|(name, context)| {
                let (server, others) = context.servers.first();
                Shown { name, server, others, current: name == current }
            })
            .collect();
        if !self.contexts.contains_key(LOCAL) {
            list.insert(0, Shown { name: LOCAL, server: "the marud of this machine", others: 0, current: current == LOCAL });
        }
        show_one(output, &list, || {
            let row = |context: &Shown<'_>| {
                let others = if context.others > 0 { format!("{} more", context.others) } else { String::new() };
                [if context.current { "*" } else { "" }.into(), context.name.into(), context.server.into(), others]
            };
            table(["", "NAME", "SERVER", "OTHERS"], list.iter().map(row))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(server: &str) -> Context {
        Context { servers: Servers::named(server.into(), Vec::new()), authority: "ca".into(), secret: "secret".into() }
    }

    #[test]
    fn a_file_from_before_servers_were_several_is_read() {
        let text =
            r#"{"current": "h1", "contexts": {"h1": {"server": "https://h1:8420", "authority": "ca", "secret": "secret"}}}"#;
        let contexts: Contexts = serde_json::from_str(text).unwrap();
        assert_eq!(contexts.contexts["h1"].servers, Servers::named("https://h1:8420".into(), Vec::new()));
    }

    #[test]
    fn many_who_change_the_contexts_at_the_same_time_lose_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("maru/contexts.json");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..8 {
                        let add = |contexts: &mut Contexts| {
                            contexts.contexts.insert(format!("h{number}-{round}"), context("https://h1:8420"));
                            Ok(())
                        };
                        change(path, add).unwrap();
                    }
                });
            }
        });
        assert_eq!(Contexts::read(&path).unwrap().contexts.len(), 64);
        let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn who_listens_everywhere_is_reached_here_and_who_does_not_where_he_listens() {
        let of = |address: &str| reachable_from_here(address.parse().unwrap()).to_string();
        assert_eq!(of("[::]:8420"), "127.0.0.1:8420");
        assert_eq!(of("0.0.0.0:9000"), "127.0.0.1:9000");
        assert_eq!(of("192.0.2.7:9000"), "192.0.2.7:9000");
        assert_eq!(of("[::1]:9000"), "[::1]:9000");
    }
}
