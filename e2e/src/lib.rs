//! Tools that put a gateway under load and keep the books: source, sink, ledger, stub DNS.

#![allow(clippy::disallowed_methods, reason = "these tools measure time; the gateway is where it comes in as now_ms")]

pub mod bench;
pub mod cluster;
pub mod crash;
pub mod demo;
pub mod dns;
pub mod images;
pub mod ledger;
pub mod probe;
pub mod process;
pub mod sink;
pub mod source;

/// The root of the checkout: above the package if cargo runs us, else the working directory. Asked for at run time, because built files are shared by
/// checkouts, and would name the one that they were built in.
#[must_use]
pub fn checkout() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(std::path::PathBuf::new, |package| std::path::Path::new(&package).join(".."))
}
