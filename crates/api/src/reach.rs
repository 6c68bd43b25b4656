//! Connections of the client, which say whether a request that has no answer was sent.

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport};

use crate::failover::Silent;

/// There was no connection: nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct NoWay(Error);

fn no_way(error: Error) -> Error {
    Error::Other(Box::new(NoWay(error)))
}

/// Connects, agrees on keys, and has the server prove itself.
#[derive(Debug, Default)]
pub(crate) struct Connecting(DefaultConnector);

impl Connector for Connecting {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        self.0.connect(details, chained).map_err(no_way)
    }
}

/// Finds addresses.
#[derive(Debug, Default)]
pub(crate) struct Resolving(DefaultResolver);

impl Resolver for Resolving {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.0.resolve(uri, config, timeout).map_err(no_way)
    }
}

fn plain(error: &Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

impl From<Error> for Silent {
    fn from(error: Error) -> Silent {
        match &error {
            Error::Other(other) if let Some(NoWay(error)) = other.downcast_ref() => {
                Silent { is_asked: false, reason: plain(error) }
            }
            error => Silent { is_asked: true, reason: plain(error) },
        }
    }
}
