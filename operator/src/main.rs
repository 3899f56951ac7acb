//! `sekimori-operator`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use sekimori_operator::cli::{Cli, LogFormat, Verb};
use sekimori_operator::io;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.verb {
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sekimori-operator", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Verb::Run(args) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            match args.log {
                LogFormat::Json => tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init(),
                LogFormat::Text => tracing_subscriber::fmt().with_ansi(std::io::stdout().is_terminal()).with_env_filter(filter).init(),
            }
            // Two providers may be linked; rustls would not choose by itself.
            if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
                tracing::debug!("a TLS provider was installed already");
            }
            let ran = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(anyhow::Error::from)
                .and_then(|runtime| runtime.block_on(io::run::run(*args)));
            match ran {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the operator ends");
                    ExitCode::FAILURE
                }
            }
        }
    }
}
