//! The contract as a whole: golden cases of compile, properties, the schemas, and the generated files.

mod generated;
mod golden;
mod properties;
mod schemas;

use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    PathBuf::from("..")
}

/// Compares a file with what it should say; with `UPDATE=1` writes it.
fn fresh(path: &Path, text: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file lies in a directory")).map_err(|error| error.to_string())?;
        return std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    }
    let found = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if found == text {
        return Ok(());
    }
    let line = found.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or_else(|| found.lines().count().min(text.lines().count()));
    let (was, is) = (found.lines().nth(line).unwrap_or("(end)"), text.lines().nth(line).unwrap_or("(end)"));
    Err(format!("{} is stale from line {}:\n  there: {was}\n  now:   {is}\nrun with UPDATE=1 and look at the difference", path.display(), line + 1))
}
