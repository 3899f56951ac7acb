//! Reference pages that are made from the code: fresh, or the test fails (UPDATE=1 rewrites them).

use std::fmt::Write as _;
use std::path::Path;

use clap::CommandFactory as _;
use sekimori_mta::cli::Cli;
use sekimori_mta::io::metrics::Metrics;
use sekimori_mta::smtp::limits;

fn check(name: &str, expected: &str) {
    let path = Path::new("../docs/reference").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, expected).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/reference/{name} is not what the code says: make generate, and read the diff");
}

#[test]
fn smtp_limits() {
    let mut page = "# SMTP limits\n\nEvery bound of an SMTP session. Generated: `make generate`.\n\n| limit | unit | default | reply | closes | why |\n|---|---|---|---|---|---|\n".to_owned();
    for limit in limits::table() {
        let reply = limit.reply.map_or_else(|| "-".to_owned(), |reply| format!("`{}`", sekimori_mta::smtp::Reply::from(reply)));
        let closes = if limit.closes { "yes" } else { "" };
        writeln!(page, "| `{}` | {} | {} | {reply} | {closes} | {} |", limit.name, limit.unit, limit.default, limit.reason).expect("a string");
    }
    check("smtp-limits.md", &page);
}

#[test]
fn metrics() {
    let metrics = Metrics::new();
    metrics.engine_scans.with_label_values(&["", "", "", ""]).reset();
    metrics.engine_scan_seconds.with_label_values(&["", ""]).observe(0.0);
    metrics.breaker_open.with_label_values(&[""]).set(0);
    metrics.queue_messages.with_label_values(&[""]).set(0);
    metrics.stage_seconds.with_label_values(&[""]).observe(0.0);
    metrics.connections.with_label_values(&[""]).set(0);
    metrics.quarantine_messages.with_label_values(&[""]).set(0);
    metrics.certificate_not_after.with_label_values(&[""]).set(0);
    let mut page = "# Metrics\n\nWhat a gateway's `/metrics` shows. The operator's: [operator-metrics.md](operator-metrics.md). Generated: `make generate`.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for [name, kind, labels, help] in metrics.table() {
        assert!(!help.is_empty(), "{name} has no meaning");
        writeln!(page, "| `{name}` | {kind} | {labels} | {help} |").expect("a string");
    }
    check("metrics.md", &page);
}

#[test]
fn commands() {
    let mut page = "# Commands\n\nWhat `--help` says. Generated: `make generate`.\n".to_owned();
    let mut root = Cli::command().term_width(110);
    root.build();
    let mut names = vec![];
    walk(&root, &mut names, &mut page);
    check("commands.md", &page);
}

fn walk(command: &clap::Command, names: &mut Vec<String>, page: &mut String) {
    names.push(command.get_name().to_owned());
    let text = command.clone().render_long_help().to_string();
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    write!(page, "\n## {}\n\n```\n{}\n```\n", names.join(" "), text.join("\n").trim()).expect("a string");
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        walk(verb, names, page);
    }
    names.pop();
}
