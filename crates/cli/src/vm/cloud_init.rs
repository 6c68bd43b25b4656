//! What `maru vm create` tells cloud-init in the guest.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use crate::options::{OptionError, Parts};
use crate::remote::RemoteError;

/// The form of a network card's addresses.
const FORM: &str = "ID[,address=ADDRESS/PREFIX][,gateway=ADDRESS][,dns=ADDRESS]";

/// Options for cloud-init. Secrets are in files: what is in an argument list, everybody on the machine can read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cloud-init")]
pub struct CloudInitArgs {
    /// The guest's name for itself; the VM's name if there is one of these options without it
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
    /// The name of the first user
    #[arg(long, value_name = "NAME", conflicts_with = "user_data")]
    user: Option<String>,
    /// A file with public keys that may log in as the first user; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE", conflicts_with = "user_data")]
    ssh_keys: Vec<PathBuf>,
    /// A file with the hash of the password of --user, as `mkpasswd --method=sha-512` prints it
    #[arg(long, value_name = "FILE", conflicts_with = "user_data", requires = "user")]
    password_hash_file: Option<PathBuf>,
    /// Addresses of a network card, which uses DHCP otherwise; may be given several times
    #[arg(long = "address", value_name = FORM)]
    addresses: Vec<Addresses>,
    /// A file with user data, instead of user, keys and password
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

/// `--address`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Addresses(api::CloudNet);

impl FromStr for Addresses {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Addresses, OptionError> {
        let (id, mut parts) = Parts::with_head(text, "the network card", FORM)?;
        let net = api::CloudNet {
            id,
            addresses: parts.text("address")?.into_iter().collect(),
            gateway: parts.text("gateway")?,
            name_servers: parts.text("dns")?.into_iter().collect(),
        };
        parts.finish()?;
        Ok(Addresses(net))
    }
}

impl CloudInitArgs {
    /// What the guest is told; nothing if no option asks for it.
    pub fn read(self) -> Result<Option<api::CloudInit>, RemoteError> {
        let mut ssh_keys = Vec::new();
        for file in &self.ssh_keys {
            let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
            ssh_keys.extend(read(file)?.lines().map(str::trim).filter(is_key).map(String::from));
        }
        let mut nets: Vec<api::CloudNet> = Vec::new();
        for Addresses(net) in self.addresses {
            match nets.iter_mut().find(|known| known.id == net.id) {
                Some(known) => {
                    known.addresses.extend(net.addresses);
                    known.gateway = known.gateway.take().or(net.gateway);
                    known.name_servers.extend(net.name_servers);
                }
                None => nets.push(net),
            }
        }
        let hash = self.password_hash_file.as_deref().map(read).transpose()?;
        let wanted = api::CloudInit {
            host_name: self.host_name,
            user: self.user,
            ssh_keys,
            password_hash: hash.map(|hash| hash.trim().into()),
            nets,
            user_data: self.user_data.as_deref().map(read).transpose()?,
        };
        Ok((wanted != api::CloudInit::default()).then_some(wanted))
    }
}

fn read(path: &Path) -> Result<String, RemoteError> {
    std::fs::read_to_string(path).map_err(|source| RemoteError::File { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_card_are_put_together_and_secrets_come_from_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let args = CloudInitArgs {
            host_name: None,
            user: Some("alice".into()),
            ssh_keys: vec![file("keys", "# mine\nssh-rsa A\n\nssh-rsa B\n")],
            password_hash_file: Some(file("hash", "$6$x\n")),
            addresses: ["net0,address=10.0.0.5/24,gateway=10.0.0.1", "net0,address=fd00::5/64,dns=9.9.9.9"]
                .map(|text| text.parse().unwrap())
                .into(),
            user_data: None,
        };
        let told = args.read().unwrap().unwrap();
        assert_eq!((told.ssh_keys.len(), told.password_hash.as_deref(), told.nets.len()), (2, Some("$6$x"), 1));
        assert_eq!((told.nets[0].addresses.len(), told.nets[0].gateway.as_deref()), (2, Some("10.0.0.1")));
        assert!("net0,addr=1".parse::<Addresses>().unwrap_err().to_string().contains("the form is"));
    }
}
