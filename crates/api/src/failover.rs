//! Which server is asked: one after the other, until one answers.
//!
//! ```text
//!   the one that answered last ──▶ there is no way to it ──▶ the next one ... ──▶ there is no other: all are named, each with its reason
//!          │
//!          ├─▶ it answers, whatever that is ──▶ it is the first that is asked from now on
//!          └─▶ it was asked, and is gone ─┬─▶ what may be done twice ──▶ the next one
//!                                         └─▶ what may not ──▶ nobody knows whether it was done
//! ```
//!
//! What may be done twice is what only looks, and what the server does once for all requests with one `Idempotency-Key`.

use std::sync::atomic::{AtomicUsize, Ordering};

use ureq::http::Method;

use crate::client::ClientError;

/// Is told of a server.
type Told = Box<dyn Fn(&str) + Send + Sync>;

/// Servers that answer for each other.
pub(crate) struct Servers {
    all: Vec<String>,
    /// Which of them is asked first.
    first: AtomicUsize,
    moved: Option<Told>,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub path: &'a str,
    /// It may be asked for again when nobody knows whether it was done.
    pub is_repeatable: bool,
}

/// A server that has not answered.
#[derive(Debug)]
pub(crate) struct Silent {
    /// It may have got what it was asked.
    pub is_asked: bool,
    pub reason: String,
}

/// A server that was asked in vain, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The server.
    pub server: String,
    /// Why it does not answer.
    pub reason: String,
}

impl Servers {
    pub fn new(all: Vec<String>) -> Servers {
        Servers { all, first: AtomicUsize::new(0), moved: None }
    }

    /// `moved` is told when another one than before answers.
    pub fn when_moved(&mut self, moved: Told) {
        self.moved = Some(moved);
    }

    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Asks one after the other. `ask` gives a server's answer, whatever that is, or says that there is none.
    pub fn ask<T>(
        &self,
        asked: Asked<'_>,
        mut ask: impl FnMut(&str) -> Result<Result<T, ClientError>, Silent>,
    ) -> Result<T, ClientError> {
        let (first, mut tried) = (self.first.load(Ordering::Relaxed), Vec::new());
        for step in 0..self.all.len() {
            let place = (first + step) % self.all.len();
            let server = &self.all[place];
            match ask(server) {
                Ok(answer) => {
                    self.first.store(place, Ordering::Relaxed);
                    if let Some(moved) = self.moved.as_ref().filter(|_| step > 0) {
                        moved(server);
                    }
                    return answer;
                }
                Err(Silent { is_asked: true, reason }) if !asked.is_repeatable => {
                    return Err(ClientError::Unknown { server: server.clone(), reason, told_by: told_by(asked.path) });
                }
                Err(Silent { reason, .. }) => tried.push(Tried { server: server.clone(), reason }),
            }
        }
        Err(ClientError::Unreachable { tried })
    }
}

/// The servers that were asked in vain, for people.
pub(crate) fn shown(tried: &[Tried]) -> String {
    match tried {
        [Tried { server, reason }] => format!("{server} does not answer: {reason}"),
        _ => {
            let each: Vec<String> = tried.iter().map(|tried| format!("{}: {}", tried.server, tried.reason)).collect();
            format!("none of {} hosts answers ({})", tried.len(), each.join("; "))
        }
    }
}

/// The parts of a path below the API, without its parameters.
fn parts(path: &str) -> Vec<&str> {
    path.split('?').next().unwrap_or_default().trim_matches('/').split('/').collect()
}

/// Whether a server does this once for all requests with one `Idempotency-Key`.
pub(crate) fn takes_key(method: &Method, path: &str) -> bool {
    match (method.as_str(), &parts(path)[..]) {
        ("POST", ["images" | "vms"] | ["vms", "import"]) | ("DELETE" | "PATCH", ["vms", _]) => true,
        ("POST", ["vms", _, operation]) => matches!(
            *operation,
            "checkpoints" | "clone" | "discard-saved" | "export" | "pause" | "reset" | "resume" | "save" | "start" | "stop"
        ),
        ("POST", ["vms", _, "checkpoints", "merge"] | ["vms", _, "checkpoints", _, "apply"] | ["vms", _, "usage", "reset"]) => {
            true
        }
        ("DELETE", ["vms", _, "checkpoints", _]) => true,
        ("PATCH" | "PUT", ["vms", _, "nets", _, "policy"] | ["vms", _, "resources"]) => true,
        _ => false,
    }
}

/// The command that tells whether something was done.
fn told_by(path: &str) -> &'static str {
    match parts(path)[..] {
        ["vms", _, "move" | "placement", ..] => "maru vm explain",
        ["vms", ..] => "maru vm list",
        ["images", ..] => "maru image list",
        ["volumes", ..] => "maru volume list",
        ["switches", ..] => "maru switch list",
        ["tokens", ..] => "maru token list",
        ["cluster" | "hosts", ..] => "maru cluster status",
        _ => "maru task list",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_WAY: (bool, &str) = (false, "refused");
    const GONE: (bool, &str) = (true, "reset");

    fn servers() -> Servers {
        Servers::new(["a", "b", "c"].map(String::from).to_vec())
    }

    /// Asks; gives the servers that were asked, and what came of it.
    fn ask(servers: &Servers, is_repeatable: bool, silent: &[(&str, (bool, &str))]) -> (String, Result<String, ClientError>) {
        let mut order = String::new();
        let answer = servers.ask(Asked { path: "/vms/web/move", is_repeatable }, |server| {
            order += server;
            match silent.iter().find(|(name, _)| *name == server) {
                Some((_, (is_asked, reason))) => Err(Silent { is_asked: *is_asked, reason: (*reason).to_owned() }),
                None => Ok(Ok(server.to_owned())),
            }
        });
        (order, answer)
    }

    #[test]
    fn the_server_that_answered_last_is_asked_first() {
        let (mut servers, moves) = (servers(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
        let told = moves.clone();
        servers.when_moved(Box::new(move |server| told.lock().unwrap().push(server.to_owned())));
        assert_eq!(ask(&servers, false, &[]).0, "a");
        assert_eq!(ask(&servers, false, &[("a", NO_WAY)]).0, "ab");
        assert_eq!(ask(&servers, false, &[("a", NO_WAY)]).0, "b");
        assert_eq!(ask(&servers, true, &[("b", GONE), ("c", NO_WAY)]).0, "bca");
        assert_eq!(*moves.lock().unwrap(), ["b", "a"]);
    }

    #[test]
    fn what_may_not_be_done_twice_is_not_repeated_when_it_may_have_arrived() {
        let (order, answer) = ask(&servers(), false, &[("a", NO_WAY), ("b", GONE)]);
        let told = answer.unwrap_err().to_string();
        assert_eq!(order, "ab");
        assert!(told.starts_with("b has gone") && told.contains("`maru vm explain`"), "{told}");
    }

    #[test]
    fn all_that_were_tried_are_named() {
        let (order, answer) = ask(&servers(), true, &[("a", NO_WAY), ("b", GONE), ("c", NO_WAY)]);
        assert_eq!(order, "abc");
        let told = answer.unwrap_err().to_string();
        assert!(told.starts_with("none of 3 hosts answers (a: refused; b: reset; c: refused)"), "{told}");
    }

    #[test]
    fn keys_are_sent_where_the_document_says_that_they_count() {
        let document: serde_json::Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        let mut counted = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
                let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
                let is_told = parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key");
                assert_eq!(takes_key(&method, &format!("{path}?wait=1")), is_told, "{method} {path}");
                counted += usize::from(is_told);
            }
        }
        assert!(counted > 20, "{counted}");
    }
}
