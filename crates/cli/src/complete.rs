//! Completion of names: `marud` is asked for them while the Tab key waits.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use api::client::Client;
use clap::{Command, CommandFactory};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use serde_json::Value;

use crate::cli::Cli;
use crate::remote::{Connect, context_names};

/// How long the Tab key waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// The variable by which a shell asks.
const VARIABLE: &str = "COMPLETE";

/// Arguments that are names, where they are lists in the API, and which field the name is.
const NAMES: [(&str, &str, &[&str]); 6] = [
    ("vm", "/vms", &["spec", "name"]),
    ("task", "/tasks", &["id"]),
    ("volume", "/volumes", &["name"]),
    ("image", "/images", &["name"]),
    ("switch", "/switches", &["name"]),
    ("port", "/ports", &["name"]),
];

/// Answers a shell that wants to complete something, and ends then; returns if nobody does.
pub fn answer() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The script that lets a shell ask.
pub fn script(shell: &str) -> std::io::Result<String> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(shell).ok_or_else(|| std::io::Error::other(format!("no completion for {shell}")))?;
    completer.write_registration(VARIABLE, "maru", "maru", "maru", &mut script)?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// The command line, with what knows the names.
pub fn command() -> Command {
    with_names(Cli::command())
}

fn with_names(command: Command) -> Command {
    let command = command.mut_args(|argument| match argument.get_id().as_str() {
        "context" => argument.add(ArgValueCandidates::new(contexts)),
        "vm" => argument.add(ArgValueCandidates::new(|| names("vm"))),
        "task" => argument.add(ArgValueCandidates::new(|| names("task"))),
        "volume" => argument.add(ArgValueCandidates::new(|| names("volume"))),
        "image" => argument.add(ArgValueCandidates::new(|| names("image"))),
        "switch_name" | "switch_names" | "switches" => argument.add(ArgValueCandidates::new(|| names("switch"))),
        "port_name" => argument.add(ArgValueCandidates::new(|| names("port"))),
        _ => argument,
    });
    command.mut_subcommands(with_names)
}

fn contexts() -> Vec<CompletionCandidate> {
    context_names().into_iter().map(CompletionCandidate::new).collect()
}

/// What there is of a kind; nothing if `marud` does not answer in time.
fn names(kind: &str) -> Vec<CompletionCandidate> {
    let Some((_, path, field)) = NAMES.iter().find(|(name, _, _)| *name == kind) else { return Vec::new() };
    let (sender, receiver) = channel();
    // It ends with the program.
    thread::spawn(move || sender.send(Connect::from_env().client().ok().and_then(|client| ask(&client, path, field))));
    let found = receiver.recv_timeout(PATIENCE).ok().flatten().unwrap_or_default();
    found.into_iter().map(CompletionCandidate::new).collect()
}

fn ask(client: &Client, path: &str, field: &[&str]) -> Option<Vec<String>> {
    let items: Vec<Value> = client.list(&format!("{path}?fields={}", field.join("."))).ok()?;
    let name =
        |item: &Value| field.iter().try_fold(item, |item, field| item.get(field)).and_then(Value::as_str).map(String::from);
    Some(items.iter().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_asks_maru() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(shell).unwrap();
            assert!(script.contains(VARIABLE) && script.contains("maru"), "{shell}: {script}");
        }
    }

    #[test]
    fn commands_are_completed_and_names_are_asked_for() {
        let completed = |line: &[&str]| {
            let line = line.iter().map(Into::into).collect::<Vec<_>>();
            let index = line.len() - 1;
            let found = clap_complete::engine::complete(&mut command(), line, index, None).unwrap();
            found.iter().map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert!(completed(&["maru", "vm", "sta"]).contains(&"start".into()));
        assert!(completed(&["maru", "vm", "list", "--context", ""]).contains(&"local".into()));
    }
}
