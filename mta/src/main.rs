//! `sekimori-mta`: see `sekimori-mta --help`.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use sekimori_mta::cli::{Cli, Verb};
use sekimori_mta::io::commands::{self, REFUSED, STATE};
use sekimori_mta::io::run::RunError;
use sekimori_mta::io::{log, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sekimori-mta: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match cli.verb {
        Verb::Run(args) => {
            log::start(args.log);
            run::raise_file_limit();
            match runtime.block_on(run::run(*args)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error:#}");
                    let state = matches!(error.downcast_ref(), Some(RunError::State(_)));
                    ExitCode::from(if state { STATE } else { REFUSED })
                }
            }
        }
        Verb::Check(args) => commands::check::run(&args),
        Verb::Scan(args) => runtime.block_on(commands::scan::run(*args)),
        Verb::Queue(args) => runtime.block_on(commands::kept::queue(args)),
        Verb::Quarantine(args) => runtime.block_on(commands::kept::quarantine(args)),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sekimori-mta", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}
