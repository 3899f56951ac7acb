//! The command line of `kubectl sekimori`: names, defaults and help. No behaviour here.

use clap::{Args, Parser, Subcommand, ValueEnum};
use sekimori_crds::units::Duration;

/// Fleets, tenants, queues and quarantines of Sekimori, through the API server alone.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-sekimori",
    bin_name = "kubectl sekimori",
    version,
    max_term_width = 110,
    after_help = "Start here:\n  kubectl sekimori status -A\n  kubectl sekimori tenants list -A --not-ready\n  kubectl sekimori tenants show example-com -n mail\n  \
                  kubectl sekimori queue list -n mail --fleet inbound\n  kubectl sekimori report -o report.tar.gz\n\n\
                  Exit codes: 0 ok; 1 something was not found, refused or not reached (it is named, the rest was done); 2 usage; 3 the cluster could not be asked.\n\
                  Colours: only on a terminal, never with NO_COLOR set.\n\
                  Completion: `kubectl sekimori completion bash` completes kubectl-sekimori. For `kubectl sekimori <TAB>`, put an executable\n\
                  kubectl_complete-sekimori into the PATH that says:\n  #!/bin/sh\n  exec kubectl-sekimori __complete \"$@\""
)]
pub struct Cli {
    /// Where.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Which cluster, and how the answer looks.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Path of the kubeconfig (default: KUBECONFIG, else ~/.kube/config, else the pod's own service account)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Cluster")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig (default: the current one)
    #[arg(long, value_name = "NAME", global = true, help_heading = "Cluster")]
    pub context: Option<String>,
    /// Namespace (default: that of the context)
    #[arg(long, short, value_name = "NS", global = true, help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    pub output: Output,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs; the shape stands in the help of each verb, and fields are only ever added.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The fleets at a glance: gateways, backlog, engines, and what is not as it should be
    #[command(after_help = "Examples:\n  kubectl sekimori status\n  kubectl sekimori status -A --watch\n  \
                      kubectl sekimori status -A --output json | jq '.fleets[] | select(.attention != [])'\n\n\
                      JSON: {fleets: [{namespace, name, phase, ready, wanted, draining, runnableBacklog, oldestMessageSeconds, configRevision, image, servedTenants,\n  \
                      engines: [{name, class, mode, version, canary, breaker, signatureAgeSeconds}],\n  \
                      attention: [{level, object, condition, status, reason, message, next}],\n  \
                      tenants: {known, notReady, refusing, worst: [{namespace, name, rank, reason, message}]}}], notes: [TEXT]}")]
    Status {
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
        /// Again and again, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
    },
    /// Tenants: which are served, and what holds for one
    Tenants {
        /// What to do.
        #[command(subcommand)]
        verb: TenantsVerb,
    },
    /// The queues of all gateways of a fleet
    Queue {
        /// What to do.
        #[command(subcommand)]
        verb: QueueVerb,
    },
    /// The quarantines and dead letters of all gateways of a fleet
    Quarantine {
        /// The dead letters instead of the quarantine
        #[arg(long, global = true)]
        dead_letters: bool,
        /// What to do.
        #[command(subcommand)]
        verb: QuarantineVerb,
    },
    /// A support bundle without secrets: objects, conditions, events, pods, logs, versions, queue figures
    #[command(
        after_help = "Examples:\n  kubectl sekimori report\n  kubectl sekimori report -n mail -o mail.tar.gz\n  kubectl sekimori report -o - | tar tz\n\n\
                      Secrets are never read. Values of environment variables, parameters, foreign annotations, credentials in URLs, tokens and private keys are\n\
                      replaced by REDACTED. Domains, tenants' names and what the logs say of senders and recipients stay: look before you send it on."
    )]
    Report {
        /// The file to write (default: sekimori-report-TIME.tar.gz; -: standard output)
        #[arg(long = "file", short, value_name = "FILE")]
        out: Option<String>,
        /// Lines of each log, from its end
        #[arg(long, value_name = "LINES", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        tail: u32,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  source <(kubectl-sekimori completion bash)")]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Candidates for kubectl's own completion
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words so far; the last one is being typed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Shells that completion is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// Which namespaces.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Scope {
    /// Every namespace
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

/// Verbs of `tenants`.
#[derive(Debug, Subcommand)]
pub enum TenantsVerb {
    /// Tenants with their domains and state
    #[command(
        after_help = "Examples:\n  kubectl sekimori tenants list -A --not-ready\n  kubectl sekimori tenants list -n mail --fleet inbound --watch\n\n\
                      JSON: {tenants: [{namespace, name, domains, fleet, state, ready, reason, message}]}"
    )]
    List {
        /// Where to look.
        #[command(flatten)]
        scope: Scope,
        /// Only those of this fleet (NAME or NAMESPACE/NAME)
        #[arg(long, value_name = "FLEET")]
        fleet: Option<String>,
        /// Only those that are not Ready
        #[arg(long)]
        not_ready: bool,
        /// Again and again, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
    },
    /// One tenant: domains and claims, routes, conditions, and the effective policy with where each value came from
    #[command(after_help = "Example:\n  kubectl sekimori tenants show example-com -n mail\n\n\
                      JSON: {namespace, name, fleet, state, enforcement, delivery, ownership, domains: [{name, claim}], routes: [{name, host, lookup, port, priority, weight, tls}],\n  \
                      conditions: [{type, status, reason, message, observedGeneration, current}], policy: [{field, value, from}],\n  \
                      attention: [{level, object, condition, status, reason, message, next}], notes: [TEXT]}")]
    Show {
        /// Name of the TenantDomain.
        name: String,
    },
}

/// Which gateways.
#[derive(Clone, Debug, Args)]
pub struct FleetArgs {
    /// The GatewayFleet (default: the only one of the namespace)
    #[arg(long, value_name = "FLEET")]
    pub fleet: Option<String>,
}

/// Which messages are meant.
#[derive(Clone, Debug, Default, Args)]
pub struct Selection {
    /// Queue ids; each is looked for in every gateway
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
    pub older_than: Option<Duration>,
}

impl Selection {
    /// Whether anything at all was selected.
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty() && !self.all && self.tenant.is_none() && self.route.is_none() && self.older_than.is_none()
    }
}

/// A change of messages.
#[derive(Clone, Debug, Args)]
pub struct Change {
    /// Which gateways.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Which messages.
    #[command(flatten)]
    pub selection: Selection,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// A change that takes messages away.
#[derive(Clone, Debug, Args)]
pub struct Removal {
    /// What.
    #[command(flatten)]
    pub change: Change,
    /// Do it without ids too: whatever the other criteria select, in every gateway
    #[arg(long)]
    pub yes: bool,
}

/// A list.
#[derive(Clone, Debug, Args)]
pub struct Listing {
    /// Which gateways.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Which messages; none: all.
    #[command(flatten)]
    pub selection: Selection,
    /// Again and again, until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
}

/// Verbs of `queue`.
#[derive(Debug, Subcommand)]
pub enum QueueVerb {
    /// List messages of all gateways, the oldest first (all, if nothing is selected)
    #[command(
        after_help = "Examples:\n  kubectl sekimori queue list -n mail --fleet inbound\n  kubectl sekimori queue list --tenant mail/example-com --older-than 1h\n\n\
                      JSON: {messages: [{pod, id, sub, tenant, purpose, state, recipients, sizeBytes, receivedMs, dueMs, route, error}], complete, gateways: [{pod, now, messages}],\n  \
                      unreachable: [{pod, error}], missing: [ID]}. Exit code 1 if a gateway was not reached."
    )]
    List(Listing),
    /// Show one message: envelope, copies, next attempts
    #[command(after_help = "JSON: {pod, message: {envelope, groups, entries}}")]
    Show {
        /// Which gateways.
        #[command(flatten)]
        fleet: FleetArgs,
        /// Queue id.
        id: String,
    },
    /// Try now
    #[command(after_help = CHANGE_HELP)]
    Retry(Change),
    /// Keep back, and stop the expiry clock
    #[command(after_help = CHANGE_HELP)]
    Hold(Change),
    /// Let held messages go on
    #[command(after_help = CHANGE_HELP)]
    Release(Change),
    /// Take out of the queue into the dead letters
    #[command(after_help = CHANGE_HELP)]
    Drop(Removal),
}

/// The shape of every change's answer.
const CHANGE_HELP: &str = "JSON: {count, inFlight, dryRun, gateways: [{pod, count, inFlight, ids, failed: [{id, error}]}], unreachable: [{pod, error}], missing: [ID]}.\n\
                           Exit code 1 if a gateway was not reached, an id was not found or a message could not be changed.";

/// Verbs of `quarantine`.
#[derive(Debug, Subcommand)]
pub enum QuarantineVerb {
    /// List kept messages of all gateways, the oldest first (all, if nothing is selected)
    #[command(
        after_help = "Examples:\n  kubectl sekimori quarantine list -n mail --fleet inbound --tenant mail/example-com\n  kubectl sekimori quarantine list --dead-letters\n\n\
                      JSON: {messages: [{pod, key, id, kind, tenant, reason, sender, recipients, from, subject, storedMs, bytes}], complete, gateways: [{pod, now, messages}],\n  \
                      unreachable: [{pod, error}], missing: [ID]}. Exit code 1 if a gateway was not reached."
    )]
    List(Listing),
    /// Show one message; with --raw, the message itself
    #[command(after_help = "JSON: {pod, message: {entry, envelope}}")]
    Show {
        /// Which gateways.
        #[command(flatten)]
        fleet: FleetArgs,
        /// Queue id.
        id: String,
        /// The message's bytes, as they came in
        #[arg(long)]
        raw: bool,
    },
    /// Messages whose sender, recipient, subject or reason contains a text
    #[command(after_help = "JSON: as of list")]
    Search {
        /// The text.
        text: String,
        /// Which.
        #[command(flatten)]
        listing: Listing,
    },
    /// Scan again and deliver what is not infected
    #[command(after_help = CHANGE_HELP)]
    Release(Change),
    /// Delete for good
    #[command(after_help = CHANGE_HELP)]
    Delete(Removal),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("kubectl-sekimori").chain(line.split(' ').filter(|word| !word.is_empty())))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_calls_are_understood() {
        for line in [
            "status",
            "status -A --watch",
            "-n mail status --output json",
            "tenants list -A --not-ready",
            "tenants list -n mail --fleet inbound --watch",
            "tenants show example-com -n mail --context prod --kubeconfig x",
            "queue list -n mail --fleet inbound",
            "queue list --tenant mail/example-com --older-than 1h",
            "queue show 01K0000000000000000000000A",
            "queue drop --all --yes",
            "quarantine list --dead-letters",
            "quarantine search invoice --tenant a/b",
            "quarantine --dead-letters release --all --dry-run",
            "quarantine show --raw 01K0000000000000000000000A",
            "report -n mail -o mail.tar.gz",
            "report -o -",
            "completion zsh",
            "__complete queue --fl",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "",
            "status -A -n mail",
            "queue",
            "tenants show",
            "completion cmd",
            "queue list --older-than 3d",
            "status --output xml",
            "report --tail 0",
        ] {
            parse(line).expect_err(line);
        }
    }
}
