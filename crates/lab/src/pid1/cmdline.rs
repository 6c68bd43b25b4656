//! The kernel command line, where a machine without a disk gets its configuration from.

/// Words `key=value` or `key` of `/proc/cmdline`.
#[derive(Debug, Clone, Default)]
pub struct CommandLine(Vec<(String, String)>);

impl CommandLine {
    /// Reads the running kernel's command line; empty when `/proc` is not mounted.
    pub fn of_kernel() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    /// Splits `text` into words. Double quotes keep a word with spaces together, as in the kernel.
    pub fn parse(text: &str) -> Self {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in text.trim().chars() {
            match character {
                '"' => quoted = !quoted,
                c if c.is_whitespace() && !quoted => words.push(String::new()),
                c => words.last_mut().into_iter().for_each(|word| word.push(c)),
            }
        }
        let split = |word: &String| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (word.clone(), String::new()),
        };
        CommandLine(words.iter().filter(|word| !word.is_empty()).map(split).collect())
    }

    /// The value of the last `key=value`; a bare `key` has an empty value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|word| word.0 == key).map(|word| word.1.as_str())
    }

    /// The values of every `key=value`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |word| word.0 == key).map(|word| word.1.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_key_counts_and_quotes_keep_spaces() {
        let line = CommandLine::parse("quiet maru.lab=1 x=1  x=2 a=\"b c\" y=k=v\n");
        assert_eq!(line.get("quiet"), Some(""));
        assert_eq!(line.get("x"), Some("2"));
        assert_eq!(line.all("x").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(line.get("a"), Some("b c"));
        assert_eq!(line.get("y"), Some("k=v"));
        assert_eq!(line.get("none"), None);
    }
}
