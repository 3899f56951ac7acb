//! The command line: names, defaults and help. No behaviour here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A mail security gateway: mail in, every filter, one verdict, at most one write, mail out.
#[derive(Debug, Parser)]
#[command(
    name = "sekimori-mta",
    version,
    max_term_width = 110,
    after_help = "Start here:\n  sekimori-mta check --manifests manifests/quickstart\n  sekimori-mta run   --manifests manifests/quickstart\n  \
                  sekimori-mta scan  --manifests manifests/quickstart mail.eml\n  sekimori-mta queue list\n\n\
                  Exit codes: 0 ok, 1 the input was refused, 2 usage, 3 a state directory that must not be used."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve mail from the manifests in a directory until SIGTERM
    ///
    /// Reads every *.yaml in the directory: the same documents that a cluster gets, with the Secrets and ConfigMaps that they refer to.
    /// A changed file, or SIGHUP, reloads; a bad document is named and its last good form stays.
    #[command(after_help = "Example with engines that run here already:\n  sekimori-mta run --manifests manifests/engines-alone \\\n      \
                            --engine clamav=unix:/run/clamav/clamd.ctl --engine rspamd=127.0.0.1:11333")]
    Run(Box<RunArgs>),
    /// Print every error and warning in the manifests; exit 1 if a document is rejected
    Check(CheckArgs),
    /// Scan messages without delivering them: verdict and its explanation
    Scan(Box<ScanArgs>),
    /// The queue of a running gateway
    Queue(QueueArgs),
    /// The quarantine and the dead letters of a running gateway
    Quarantine(QuarantineArgs),
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

/// Manifests, and how they are read here.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// Directory with *.yaml documents
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// What is different here.
    #[command(flatten)]
    pub local: Local,
}

/// What of the configuration is this machine's own.
#[derive(Clone, Debug, Args)]
pub struct Local {
    /// Where an engine listens here: clamav=unix:/run/clamd.sock or rspamd=127.0.0.1:11333 (required for each enabled InPod engine)
    #[arg(long = "engine", value_name = "NAME=ADDRESS", value_parser = engine_endpoint)]
    pub engines: Vec<(String, String)>,
    /// DNS resolver, in place of the fleet's or the system's
    #[arg(long = "resolver", value_name = "ADDRESS")]
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Directory with *.yar rules for the built-in anti-virus engine, beside its own
    #[arg(long, value_name = "DIR")]
    pub rules: Option<PathBuf>,
}

fn engine_endpoint(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => Ok((name.to_owned(), address.to_owned())),
        _ => Err("write NAME=ADDRESS, such as clamav=unix:/run/clamd.sock or rspamd=127.0.0.1:11333".to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) && !host.contains('/') => Ok(text.to_owned()),
        _ => Err("write HOST:PORT, such as sekimori-operator.sekimori.svc:8443".to_owned()),
    }
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
#[command(group = clap::ArgGroup::new("configuration").required(true).args(["manifests", "operator"]))]
pub struct RunArgs {
    /// Directory with *.yaml documents
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Follow the configuration of an operator instead: its address (in a pod)
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port, requires_all = ["operator_ca", "operator_token"], conflicts_with_all = ["engines", "resolvers"])]
    pub operator: Option<String>,
    /// Certificates that vouch for the operator, PEM; read at each connection
    #[arg(long, value_name = "FILE", requires = "operator")]
    pub operator_ca: Option<PathBuf>,
    /// Token that the operator knows this pod by; read at each connection, and again when it changes
    #[arg(long, value_name = "FILE", requires = "operator")]
    pub operator_token: Option<PathBuf>,
    /// How often the token is looked at for a fresh one
    #[arg(long, value_name = "DURATION", default_value = "30s", hide = true)]
    pub operator_token_every: sekimori_crds::units::Duration,
    /// Key that the last good configuration is sealed with on the volume; without it, it lies there in clear
    #[arg(long, value_name = "FILE", requires = "operator")]
    pub snapshot_key: Option<PathBuf>,
    /// Directory of the listeners' certificates from an operator: NAME/tls.crt and NAME/tls.key
    #[arg(long, value_name = "DIR", default_value = "/etc/sekimori/tls", hide = true)]
    pub certificates: PathBuf,
    /// Serve the admin API on this unix socket, and on the admin port only health and metrics
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// What is different here.
    #[command(flatten)]
    pub local: Local,
    /// State directory: spool, quarantine, last good snapshot
    #[arg(long, value_name = "DIR", default_value = "./sekimori-state")]
    pub state: PathBuf,
    /// Address that the listeners bind
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub bind: std::net::IpAddr,
    /// Address of the admin port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8025")]
    pub admin: std::net::SocketAddr,
    /// Log format; the level is set by RUST_LOG (default info)
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log: LogFormat,
    /// Memory for messages in flight; when it is used up, the slowest transaction is answered 452
    #[arg(long, value_name = "SIZE", default_value = "512Mi")]
    pub message_memory: sekimori_crds::units::ByteSize,
    /// The most of that memory that one client network (/24, /56) may hold, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub message_memory_network_percent: u64,
    /// Size of one spool segment (preallocated, recycled); larger than the largest message that a listener takes
    #[arg(long, value_name = "SIZE", default_value = "72Mi")]
    pub spool_segment: sekimori_crds::units::ByteSize,
    /// Most bytes that the spool may take on disk
    #[arg(long, value_name = "SIZE", default_value = "4Gi")]
    pub spool_max: sekimori_crds::units::ByteSize,
    /// How long a stop may take: sessions end, then connections are closed
    #[arg(long, value_name = "DURATION", default_value = "25s")]
    pub stop_timeout: sekimori_crds::units::Duration,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: Source,
    /// Output format
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: Source,
    /// Judge by the policy of this domain's tenant (default: the first tenant)
    #[arg(long, value_name = "DOMAIN")]
    pub tenant: Option<String>,
    /// The client's address, for SPF and lists
    #[arg(long, value_name = "ADDRESS")]
    pub client_ip: Option<std::net::IpAddr>,
    /// MAIL FROM; `<>` is the null sender
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<String>,
    /// EHLO name
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub helo: String,
    /// Output format
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Files or Maildirs; none: standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Where the gateway is.
#[derive(Clone, Debug, Args)]
pub struct Admin {
    /// Admin address of the gateway: ADDRESS:PORT or the path of a unix socket
    /// (default: /run/sekimori/admin.sock if it exists, else 127.0.0.1:8025)
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub admin: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    pub output: Output,
}

/// `queue`.
#[derive(Debug, Args)]
pub struct QueueArgs {
    /// Where.
    #[command(flatten)]
    pub admin: Admin,
    /// What to do.
    #[command(subcommand)]
    pub verb: QueueVerb,
}

/// Which messages are meant.
#[derive(Clone, Debug, Args)]
pub struct Selection {
    /// Queue ids
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Every message
    #[arg(long)]
    pub all: bool,
    /// Of this tenant (NAMESPACE/NAME)
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// For this route (NAME)
    #[arg(long, value_name = "ROUTE")]
    pub route: Option<String>,
    /// Older than this
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<sekimori_crds::units::Duration>,
}

impl Selection {
    /// Whether anything at all was selected.
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty() && !self.all && self.tenant.is_none() && self.route.is_none() && self.older_than.is_none()
    }
}

/// Verbs of `queue`.
#[derive(Debug, Subcommand)]
pub enum QueueVerb {
    /// List messages (all, if nothing is selected)
    List(Selection),
    /// Show one message: envelope, copies, next attempts
    Show {
        /// Queue id.
        id: String,
    },
    /// Try now
    Retry(Change),
    /// Keep back, and stop the expiry clock
    Hold(Change),
    /// Let held messages go on
    Release(Change),
    /// Take out of the queue into the dead letters
    Drop(Change),
}

/// A change of messages in the queue.
#[derive(Clone, Debug, Args)]
pub struct Change {
    /// Which.
    #[command(flatten)]
    pub selection: Selection,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// `quarantine`.
#[derive(Debug, Args)]
pub struct QuarantineArgs {
    /// Where.
    #[command(flatten)]
    pub admin: Admin,
    /// The dead letters instead of the quarantine
    #[arg(long, global = true)]
    pub dead_letters: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: QuarantineVerb,
}

/// Verbs of `quarantine`.
#[derive(Debug, Subcommand)]
pub enum QuarantineVerb {
    /// List messages (all, if nothing is selected)
    List(Selection),
    /// Show one message; with --raw, the message itself
    Show {
        /// Queue id.
        id: String,
        /// The message's bytes
        #[arg(long)]
        raw: bool,
    },
    /// Messages whose sender, recipient, subject or reason contains a text
    Search {
        /// The text.
        text: String,
        /// Which.
        #[command(flatten)]
        selection: Selection,
    },
    /// Scan again and deliver what is not infected
    Release(Change),
    /// Delete for good
    Delete(Change),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_calls_are_understood() {
        for line in [
            "run --manifests d --state s --engine clamav=unix:/run/clamd.sock --engine rspamd=127.0.0.1:11333 --resolver 127.0.0.1:53",
            "run --manifests d --log text --bind 0.0.0.0 --admin 127.0.0.1:0",
            "run --operator=op.sekimori.svc:8443 --operator-ca=ca --operator-token=t --snapshot-key=k --state=s --bind=:: --admin=[::]:8025 \
             --admin-socket=/run/a.sock --message-memory=512Mi --spool-max=100Mi --stop-timeout=30s --log=json",
            "check --manifests d",
            "scan --manifests d --tenant example.com --client-ip 192.0.2.1 --from a@b --output json x.eml y.eml",
            "queue list",
            "queue --admin 127.0.0.1:9 retry --all --dry-run",
            "queue show 01K0000000000000000000000A",
            "queue drop --tenant default/x --older-than 72h",
            "queue hold --route primary",
            "quarantine list --dead-letters",
            "quarantine show --raw 01K0000000000000000000000A",
            "quarantine search invoice --output json",
            "quarantine release 01K0000000000000000000000A",
            "completion bash",
        ] {
            Cli::try_parse_from(std::iter::once("sekimori-mta").chain(line.split(' '))).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "",
            "run",
            "run --operator op:1",
            "run --operator op --operator-ca c --operator-token t",
            "run --manifests d --operator op:1 --operator-ca c --operator-token t",
            "run --manifests d --snapshot-key k",
            "run --operator op:1 --operator-ca c --operator-token t --resolver 127.0.0.1:53",
            "run --manifests d --engine clamav",
            "scan",
            "queue",
            "queue retry --older-than 3d",
            "check --manifests d --output xml",
        ] {
            Cli::try_parse_from(std::iter::once("sekimori-mta").chain(line.split(' '))).expect_err(line);
        }
    }
}
