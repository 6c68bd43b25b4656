//! `make demo`, and that a newcomer who follows the README by hand does what it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::appliance::program;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The command lines of the README's section about a first VM, without comments.
fn commands_of_the_readme() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap().replace("\\\n", "");
    let section = readme.split("## A first VM by hand").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let blocks = section.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).map(|line| line.split(" # ").next().unwrap_or_default()).map(words).collect()
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_demo_shows_vms_that_talk_and_the_life_of_one_with_the_commands_that_the_readme_names() {
    let programs = program("marud").expect("marud: cargo build --release --workspace");
    let name = format!("demo-{}", std::process::id());
    let mut demo = Command::new(root().join("scripts/demo"));
    let output = demo.env("MARU_BIN_DIR", programs.parent().unwrap()).env("MARU_LAB", &name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace("\\\n", "");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for word in [
        "Done",
        "maru-guest: facts",
        "3 packets received",
        "1 packets received",
        "before-upgrade",
        "web: delete done",
        "until they are a cluster",
    ] {
        assert!(said.contains(word), "no '{word}' in:\n{said}");
    }
    let prompts = ["$ ", "h1# ", "h2# ", "h3# ", "web# "];
    let typed = said.lines().filter_map(|line| prompts.iter().find_map(|prompt| line.trim_start().strip_prefix(prompt)));
    let typed: Vec<String> = typed.map(words).collect();
    let by_hand = commands_of_the_readme();
    // To get there, and the shell that the demo does without. (The one of the first host is named in the text.)
    let (other, shown): (Vec<&String>, Vec<&String>) = by_hand.iter().partition(|command| !typed.contains(command));
    assert!(
        matches!(other[..], [path, console] if path.starts_with("export PATH=") && console == "maru lab console h2"),
        "{other:?}"
    );
    assert!(shown.len() > 10, "{shown:?}");
    let left = Command::new(program("maru").unwrap()).args(["lab", "status", "--name", &name]).output().unwrap();
    assert!(!left.status.success(), "the demo leaves nothing behind");
}
