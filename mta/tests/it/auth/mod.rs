//! Sender authentication and DNS through their public faces.

mod mail;
mod spf_suite;
