//! The whole gateway as a process, with real peers: what a user and a mail server see. Each test has its own ports and directories.

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
