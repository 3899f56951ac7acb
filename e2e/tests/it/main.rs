//! The whole gateway as a process, with real peers: what a user and a mail server see. Each test has its own ports and directories.

#![allow(clippy::disallowed_methods, clippy::panic, reason = "scenarios wait in real time, and fail with everything that helps to see why")]

mod support;

mod abuse;
mod admin;
mod command_line;
mod crash;
mod delivery;
mod engines;
mod mail;
mod reload;
mod spool;
