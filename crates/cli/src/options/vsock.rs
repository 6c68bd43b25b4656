//! `--vsock cid=N,path=SOCKET`.

use std::str::FromStr;

use vmm::config::VsockConfig;

use super::{OptionError, Parts, absolute};

/// The form of the socket device.
pub const VSOCK_FORM: &str = "cid=N,path=SOCKET";

/// The socket device as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOption(pub VsockConfig);

impl FromStr for VsockOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<VsockOption, OptionError> {
        let form = VSOCK_FORM;
        let mut parts = Parts::new(text, form)?;
        let cid = parts.number("cid")?.ok_or(OptionError::Missing { what: "cid=", form })?;
        if cid < 3 || cid == u32::MAX {
            return Err(parts.wrong("cid", "guests have 3 to 4294967294"));
        }
        let path = parts.text("path")?.ok_or(OptionError::Missing { what: "path=", form })?;
        parts.finish()?;
        Ok(VsockOption(VsockConfig { cid, path: absolute(path.as_ref()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_arrive() {
        assert_eq!("path=/v,cid=7".parse(), Ok(VsockOption(VsockConfig { cid: 7, path: "/v".into() })));
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("cid=7", "path= is missing"),
            ("path=/v", "cid= is missing"),
            ("cid=2,path=/v", "guests have 3"),
            ("cid=x,path=/v", "'x' is no number"),
            ("cid=7,path=/v,port=1", "there is no part 'port'"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<VsockOption>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(VSOCK_FORM), "{text}: {error}");
        }
    }
}
