//! `maru host check` without the rest of `maru`: the report as text, or as JSON with `-o json`.

use std::io::IsTerminal;

fn main() {
    let report = check::run(&check::Options::default());
    if std::env::args().any(|argument| argument == "json") {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("{error}"),
        }
    } else {
        let color = if std::io::stdout().is_terminal() { check::Color::Always } else { check::Color::Never };
        print!("{}", report.render_text(color, 110));
    }
    std::process::exit(report.exit_code());
}
