//! The charts, as `helm` renders them: what they promise about rights, security, certificates and names. No cluster is needed.
//!
//! `helm` is found by SEKIMORI_HELM, in the cache of the cluster's programs, or in PATH. `UPDATE=1` rewrites `manifests/quickstart-cluster`.

mod helm;
mod images;
mod manifests;
mod monitoring;
mod rights;
mod schema;
mod security;
mod stream_certificate;
