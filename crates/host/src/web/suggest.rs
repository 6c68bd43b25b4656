//! Names that were meant, perhaps.

/// How alike two names must be: as for misspelt commands.
const ALIKE: f64 = 0.7;

/// What to do about a name that is not there: "did you mean 'web'?", or the other way out.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let alike = known.map(|known| (strsim::jaro(name, known), known)).filter(|(alike, _)| *alike > ALIKE);
    match alike.max_by(|one, other| one.0.total_cmp(&other.0)) {
        Some((_, meant)) => format!("did you mean '{meant}'?"),
        None => otherwise.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_alike_is_proposed() {
        let meant = |name| did_you_mean(name, ["web", "database"].into_iter(), "list them");
        assert_eq!(meant("wbe"), "did you mean 'web'?");
        assert_eq!(meant("databse"), "did you mean 'database'?");
        assert_eq!(meant("mail"), "list them");
    }
}
