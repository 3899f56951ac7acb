//! The command line: names, defaults and help. No behaviour here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// The operator of Sekimori: turns custom resources into a fleet of mail gateways.
#[derive(Debug, Parser)]
#[command(
    name = "sekimori-operator",
    version,
    max_term_width = 110,
    after_help = "It is installed by the chart `sekimori`, which passes every option:\n  helm install sekimori-crds helm/sekimori-crds\n  \
                  helm install sekimori helm/sekimori --namespace sekimori --create-namespace\n\n\
                  Exit codes: 0 told to stop, 1 the Lease was lost or something cannot be begun, 2 usage."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Wait for the Lease, then reconcile and serve the gateways' configuration until SIGTERM
    Run(Box<RunArgs>),
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Namespace of the operator: its Lease and its records of claims
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: String,
    /// Name of this pod: who holds the Lease
    #[arg(long, value_name = "NAME")]
    pub pod: String,
    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "sekimori-operator")]
    pub lease: String,
    /// Address of the configuration stream
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8443")]
    pub listen: SocketAddr,
    /// Address of the admin port: /livez, /readyz, /metrics
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:8080")]
    pub admin: SocketAddr,
    /// Directory with tls.crt, tls.key and ca.crt of the stream; looked at again every ten seconds
    #[arg(long, value_name = "DIR", default_value = "/etc/sekimori/tls")]
    pub tls: PathBuf,
    /// Where gateways find the stream
    #[arg(long, value_name = "HOST:PORT")]
    pub stream_address: String,
    /// Audience of the gateways' tokens
    #[arg(long, value_name = "AUDIENCE", default_value = "sekimori")]
    pub audience: String,
    /// Image of the gateway, for fleets that name none and have none recorded
    #[arg(long, value_name = "IMAGE")]
    pub gateway_image: String,
    /// Image of an idle engine slot
    #[arg(long, value_name = "IMAGE")]
    pub idle_image: String,
    /// This installation, in proofs of domains by DNS; it must survive a new installation
    #[arg(long, value_name = "ID")]
    pub installation_id: String,
    /// Networks of the cluster's pods and Services: clients from there hide who they are
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub cluster_networks: Vec<IpNet>,
    /// Namespaces to look at (default: all)
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// DNS resolvers for proofs of domains (default: the system's)
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub resolvers: Vec<SocketAddr>,
    /// Address that gateways bind in their pods
    #[arg(long, value_name = "ADDRESS", default_value = "::")]
    pub bind: IpAddr,
    /// Whether the cluster can resize a running pod's requests
    #[arg(long)]
    pub resize: bool,
    /// Log format; the level is set by RUST_LOG (default info)
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log: LogFormat,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        Cli::command().debug_assert();
    }
}
