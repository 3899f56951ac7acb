//! The operator's decisions as a whole: golden objects of whole fleets, a simulated cluster under the update, and the layout.

#![allow(clippy::panic, reason = "a test that cannot read its input says why")]

mod kubectl;
mod plan;
mod reference;
mod tidy;
mod update;

use std::path::{Path, PathBuf};

/// The directory of the golden files.
fn data() -> PathBuf {
    PathBuf::from("tests/data")
}

/// Compares a file with what it should say; with `UPDATE=1` writes it.
fn fresh(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("a directory");
        return std::fs::write(path, text).expect("a file");
    }
    let found = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}; run with UPDATE=1", path.display()));
    if found != text {
        let line = found.lines().zip(text.lines()).position(|(was, is)| was != is).unwrap_or_else(|| found.lines().count().min(text.lines().count()));
        let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
        panic!(
            "{} is stale from line {}:\n  there: {}\n  now:   {}\nrun with UPDATE=1 and look at the difference",
            path.display(),
            line + 1,
            at(&found),
            at(text)
        );
    }
}
