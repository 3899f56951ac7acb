//! `kubectl sekimori` and the world: a cluster, a terminal, a file. What is shown is decided in [`crate::kubectl`].

pub mod cluster;
pub mod exec;
pub mod kept;
pub mod report;
pub mod status;
pub mod tenants;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use crate::io::clock;
use crate::kubectl::cli::{Cli, Common, Output, Shell, TenantsVerb, Verb};
use crate::kubectl::table::Paint;
use crate::kubectl::trouble::Trouble;
use crate::kubectl::{EXIT_CLUSTER, EXIT_OK, Said, complete};
use cluster::Cluster;

/// The least time between two reads of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// A watch spends at most one part of so many of its time on reading, so that a large cluster is not asked without a pause.
const WATCH_PAUSE_FACTOR: u64 = 5;

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with 0; nobody is left to tell if the terminal is gone.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(crate::kubectl::EXIT_USAGE));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&failed(&Trouble::cluster(format!("no runtime: {error}")))),
    };
    runtime.block_on(run(cli))
}

/// One call.
async fn run(cli: Cli) -> ExitCode {
    let screen = Screen::of(&cli.common);
    match cli.verb {
        Verb::Completion { shell } => end(&Said::text(script(shell))),
        Verb::Complete { words } => {
            let mut root = Cli::command();
            root.build();
            end(&Said::text(complete::candidates(&root, &words)))
        }
        verb => match Cluster::connect(&cli.common).await {
            Ok(cluster) => on_cluster(verb, &cluster, &screen).await,
            Err(trouble) => end(&failed(&trouble)),
        },
    }
}

async fn on_cluster(verb: Verb, cluster: &Cluster, screen: &Screen) -> ExitCode {
    match verb {
        Verb::Status { scope, watch } => watched(watch, screen, async || status::said(cluster, cluster.scope(scope), screen).await).await,
        Verb::Tenants { verb: TenantsVerb::List { scope, fleet, not_ready, watch } } => {
            let wanted = crate::kubectl::tenants::Wanted { fleet, not_ready };
            watched(watch, screen, async || tenants::list(cluster, cluster.scope(scope), &wanted, screen).await).await
        }
        Verb::Tenants { verb: TenantsVerb::Show { name } } => once(tenants::show(cluster, &name, screen).await),
        Verb::Queue { verb } => kept::queue(cluster, verb, screen).await,
        Verb::Quarantine { dead_letters, verb } => kept::quarantine(cluster, verb, dead_letters, screen).await,
        Verb::Report { out, tail } => once(report::write(cluster, out, tail).await),
        // These two need no cluster, and were done before.
        Verb::Completion { .. } | Verb::Complete { .. } => ExitCode::from(EXIT_OK),
    }
}

/// How the answer is written.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// One JSON document.
    pub json: bool,
    /// Colours.
    pub paint: Paint,
    terminal: bool,
}

impl Screen {
    fn of(common: &Common) -> Self {
        let terminal = std::io::stdout().is_terminal();
        // https://no-color.org: present and not empty.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { json: common.output == Output::Json, paint: Paint { on: terminal && !no_colour && !dumb }, terminal }
    }
}

/// What a failed call says.
fn failed(trouble: &Trouble) -> Said {
    Said { text: String::new(), errors: format!("kubectl sekimori: {}\n", crate::kubectl::table::harmless(&trouble.text)), code: trouble.code }
}

/// Says it and ends.
pub(crate) fn once(result: Result<Said, Trouble>) -> ExitCode {
    end(&result.unwrap_or_else(|trouble| failed(&trouble)))
}

fn end(said: &Said) -> ExitCode {
    if write(said).is_err() {
        // A closed pipe (`| head`) is the reader's wish.
        return ExitCode::from(said.code);
    }
    ExitCode::from(said.code)
}

fn write(said: &Said) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(said.text.as_bytes())?;
    out.flush()?;
    std::io::stderr().lock().write_all(said.errors.as_bytes())
}

/// Once, or again and again until Ctrl-C. A failure ends only the first round: later the cluster may come back.
pub(crate) async fn watched(watch: bool, screen: &Screen, produce: impl AsyncFn() -> Result<Said, Trouble>) -> ExitCode {
    if !watch {
        return once(produce().await);
    }
    let mut first = true;
    loop {
        let started_ms = clock::unix_ms();
        let said = tokio::select! {
            result = produce() => match result {
                Err(trouble) if first => return end(&failed(&trouble)),
                result => result.unwrap_or_else(|trouble| failed(&trouble)),
            },
            _ = tokio::signal::ctrl_c() => return ExitCode::from(EXIT_OK),
        };
        if write(&Said { text: redrawn(screen, first, &said), ..said }).is_err() {
            return ExitCode::from(EXIT_OK);
        }
        first = false;
        let took_ms = clock::unix_ms().saturating_sub(started_ms);
        let pause = WATCH_EVERY.max(Duration::from_millis(took_ms.saturating_mul(WATCH_PAUSE_FACTOR)));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = tokio::signal::ctrl_c() => return ExitCode::from(EXIT_OK),
        }
    }
}

/// On a terminal the screen is drawn anew; elsewhere the answers follow each other, JSON one a line.
fn redrawn(screen: &Screen, first: bool, said: &Said) -> String {
    match (screen.terminal && !screen.json, first || screen.json) {
        (true, _) => format!("\u{1b}[H\u{1b}[2J{}", said.text),
        (false, true) => said.text.clone(),
        (false, false) => format!("\n{}", said.text),
    }
}

fn script(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command().bin_name("kubectl-sekimori"), "kubectl-sekimori", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// For the rare error that is nobody's but ours.
pub(crate) fn trouble(text: impl Into<String>) -> Trouble {
    Trouble { code: EXIT_CLUSTER, ..Trouble::one(text) }
}
