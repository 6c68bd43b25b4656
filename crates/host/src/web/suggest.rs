//! Names that were meant, perhaps.

/// What to do about a name that is not there: "did you mean 'web'?", or the other way out.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    // One letter wrong, left out, too many, or swapped with the next; two in a longer name.
    let slips = if name.chars().count() < 6 { 1 } else { 2 };
    let alike = known.map(|known| (strsim::osa_distance(name, known), known)).filter(|(distance, _)| *distance <= slips);
    match alike.min() {
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
