//! Tokens with which a host joins.
//!
//! ```text
//!  maru-join-1/192.0.2.1@8420,192.0.2.2@8420/FINGERPRINT/ID/SECRET/CHECK
//! ```
//!
//! A token says where the cluster is, by what its hosts prove themselves (SHA-256 of the authority's certificate), and proves once that its
//! bearer may join. The cluster keeps a hash of the secret. The check finds tokens that lost or changed a letter on their way.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use uuid::Uuid;

use crate::auth::sha256;

const KIND: &str = "maru-join-";
const VERSION: &str = "1";
/// Digits of the check.
const CHECK: usize = 8;
/// Digits of a hash, and of a secret.
const LONG: usize = 64;
/// A token has no more addresses than this, and no less than one.
const MAX_ADDRESSES: usize = 32;

/// What a token says. Whoever has its text may join, so it is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where members of the cluster are.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of the authority's certificate, in hexadecimal.
    pub fingerprint: String,
    /// Its name in the cluster.
    pub id: Uuid,
    /// What proves that its bearer may join, in hexadecimal.
    pub secret: String,
}

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("this is no token to join with: those begin with {KIND}{VERSION}/")]
    Other,
    /// Of another version.
    #[error("this token is of version '{0}', and this program reads {VERSION}: the hosts of a cluster run the same version")]
    Version(String),
    /// Letters were lost or changed.
    #[error("this token is not whole: copy all of it, as `maru cluster token` printed it")]
    Garbled,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(|a| format!("{}@{}", a.ip(), a.port())).collect();
        let text =
            format!("{KIND}{VERSION}/{}/{}/{}/{}", addresses.join(","), self.fingerprint, self.id.simple(), self.secret);
        write!(f, "{text}/{}", check(&text))
    }
}

fn check(text: &str) -> String {
    sha256(text.as_bytes())[..CHECK].to_owned()
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let text = text.trim();
        let rest = text.strip_prefix(KIND).ok_or(TokenError::Other)?;
        let (version, _) = rest.split_once('/').ok_or(TokenError::Garbled)?;
        if version != VERSION {
            return Err(TokenError::Version(version.chars().take(16).collect()));
        }
        let (checked, found) = text.rsplit_once('/').ok_or(TokenError::Garbled)?;
        if check(checked) != found {
            return Err(TokenError::Garbled);
        }
        // The check is no secret: whoever wants can make one for anything. So the parts are looked at, too.
        let parts: Vec<&str> = checked.split('/').collect();
        let [_, addresses, fingerprint, id, secret] = parts[..] else { return Err(TokenError::Garbled) };
        let address = |text: &str| -> Option<SocketAddr> {
            let (ip, port) = text.split_once('@')?;
            Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?))
        };
        let addresses: Vec<SocketAddr> =
            addresses.split(',').map(address).collect::<Option<_>>().ok_or(TokenError::Garbled)?;
        let is_hash = |text: &str| text.len() == LONG && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if addresses.len() > MAX_ADDRESSES || !is_hash(fingerprint) || !is_hash(secret) {
            return Err(TokenError::Garbled);
        }
        let id = Uuid::try_parse(id).map_err(|_| TokenError::Garbled)?;
        Ok(JoinToken { addresses, fingerprint: fingerprint.into(), id, secret: secret.into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::uuid;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            addresses: vec!["192.0.2.1:8420".parse().unwrap(), "[2001:db8::1]:8420".parse().unwrap()],
            fingerprint: "ab".repeat(32),
            id: uuid!("7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11"),
            secret: "01".repeat(32),
        }
    }

    #[test]
    fn a_token_survives_being_printed_and_needs_no_quotes_in_a_shell() {
        let text = token().to_string();
        assert!(text.starts_with("maru-join-1/192.0.2.1@8420,2001:db8::1@8420/abab"), "{text}");
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/.,:@".contains(&byte)), "{text}");
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("0101"));
    }

    #[test]
    fn other_things_are_told_from_tokens_that_lost_something() {
        assert_eq!("maru-0123".parse::<JoinToken>(), Err(TokenError::Other));
        assert_eq!("".parse::<JoinToken>(), Err(TokenError::Other));
        let newer = token().to_string().replacen("join-1/", "join-2/", 1);
        assert_eq!(newer.parse::<JoinToken>(), Err(TokenError::Version("2".into())));
        // A right check over wrong parts.
        for text in ["maru-join-1/", "maru-join-1/a@1/b/c/d", "maru-join-1/192.0.2.1@8420", "maru-join-1//////"] {
            assert_eq!(format!("{text}/{}", check(text)).parse::<JoinToken>(), Err(TokenError::Garbled), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_letter_that_is_lost_or_changed_is_noticed(at in 12_usize..220, with in proptest::option::of("[a-f0-9/.@:]")) {
            let text = token().to_string();
            let at = 12 + at % (text.len() - 12);
            let mut changed = text.clone();
            changed.replace_range(at..=at, with.as_deref().unwrap_or_default());
            prop_assume!(changed != text);
            prop_assert_eq!(changed.parse::<JoinToken>(), Err(TokenError::Garbled));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(maru-join-)?(1/)?.{0,80}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
