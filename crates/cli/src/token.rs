//! `maru token`: who may do what.

use clap::{Subcommand, ValueEnum};

use crate::output::Output;
use crate::remote::{Connect, RemoteError, show_one, shown_time, table};

/// Subcommands of `maru token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print its secret: it is shown this once
    Create {
        /// Its name, which tasks and the audit log show
        name: String,
        /// What its owner may do
        #[arg(long, value_enum)]
        role: RoleOption,
        #[command(flatten)]
        connect: Connect,
    },
    /// List tokens
    List {
        #[command(flatten)]
        connect: Connect,
        /// How to show the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Delete a token: it is refused from now on
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: Connect,
    },
}

/// `--role`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RoleOption {
    /// Look
    Viewer,
    /// Create, change, start, stop and delete VMs
    Operator,
    /// Give tokens to others
    Admin,
}

/// Does it.
pub fn run(command: TokenCommand) -> Result<(), RemoteError> {
    match command {
        TokenCommand::Create { name, role, connect } => {
            let role = match role {
                RoleOption::Viewer => api::Role::Viewer,
                RoleOption::Operator => api::Role::Operator,
                RoleOption::Admin => api::Role::Admin,
            };
            let body = api::NewToken { name, role };
            let made: api::CreatedToken = connect.client()?.call(api::client::Method::POST, "/tokens", Some(&body))?;
            Ok(crate::output::print(&format!("{}\n", made.secret))?)
        }
        TokenCommand::List { connect, output } => {
            let tokens: Vec<api::Token> = connect.client()?.list("/tokens")?;
            show_one(output, &tokens, || {
                let row = |token: &api::Token| [token.name.clone(), token.role.to_string(), shown_time(token.created_at)];
                table(["NAME", "ROLE", "CREATED"], tokens.iter().map(row))
            })
        }
        TokenCommand::Delete { name, connect } => {
            Ok(connect.client()?.call(api::client::Method::DELETE, &format!("/tokens/{name}"), None::<&()>)?)
        }
    }
}
