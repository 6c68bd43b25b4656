//! The switch's side of the control socket.

use std::io;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread;

use packet::{Connection, Listener};

use super::{Failure, Reply, Request, Stream};
use crate::host::{Answer, Host};
use crate::sandbox::{ThreadKind, confine_thread};

/// A request, and who wants the answer.
type Asked = (Request, std::sync::mpsc::SyncSender<(Reply, Option<Stream>)>);

/// Serves clients for ever. Each has a thread that waits for it; the requests are done here, one after the other.
pub fn serve(listener: Listener, mut host: Host) -> io::Result<()> {
    let (sender, requests) = channel::<Asked>();
    thread::Builder::new().name("clients".into()).spawn(move || {
        confine_thread(ThreadKind::Clients);
        accept(&listener, &sender);
    })?;
    for (request, answer) in requests {
        let reply = match host.execute(request) {
            Ok(Answer { value, rest }) => (Reply::Ok(value), rest),
            Err(error) => (Reply::Error(Failure { message: crate::error_chain(&error) }), None),
        };
        // Who has gone does not want it.
        let _ = answer.send(reply);
    }
    Ok(())
}

fn accept(listener: &Listener, requests: &Sender<Asked>) {
    loop {
        match listener.accept() {
            Ok(connection) => {
                let requests = requests.clone();
                let spawned = thread::Builder::new().name("client".into()).spawn(move || {
                    confine_thread(ThreadKind::Client);
                    // The end of one client is nobody else's.
                    let _ = serve_client(&connection, &requests);
                });
                if let Err(error) = spawned {
                    eprintln!("maru-switch: a client is turned away: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return eprintln!("maru-switch: no more clients are taken: {error}"),
        }
    }
}

fn serve_client(connection: &Connection, requests: &Sender<Asked>) -> io::Result<()> {
    loop {
        let (reply, rest) = match connection.receive_message::<Request>() {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => {
                let (answer, answered) = sync_channel(1);
                requests.send((request, answer)).map_err(io::Error::other)?;
                answered.recv().map_err(io::Error::other)?
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                (Reply::Error(Failure { message: format!("no request that this switch knows: {error}") }), None)
            }
            Err(error) => return Err(error),
        };
        connection.send_message(&reply)?;
        if let Some(rest) = rest {
            rest(connection)?;
        }
    }
}
