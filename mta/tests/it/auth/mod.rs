//! Sender authentication and DNS through their public faces.

mod dkim;
mod dmarc;
mod limits;
mod mail;
mod network;
mod spf_suite;
mod stub;
