//! `kubectl sekimori`: what is shown, from what was read. Nothing here asks a cluster; `io::kubectl` does.
//!
//! * [`cli`]: the command line; [`complete`]: candidates for kubectl's completion;
//! * [`status`] and [`attention`]: the fleets at a glance, and what is not as it should be;
//! * [`tenants`] and [`policy`]: lists, one tenant, its effective policy with where each value came from;
//! * [`messages`]: queues and quarantines, merged from the answers of many gateways;
//! * [`report`] and [`redact`]: the support bundle, and what must not be in it;
//! * [`trouble`]: what the API server refused, and what to do about it;
//! * [`table`]: text for a terminal.

pub mod attention;
pub mod cli;
pub mod complete;
pub mod messages;
pub mod policy;
pub mod redact;
pub mod report;
pub mod status;
pub mod table;
pub mod tenants;
pub mod trouble;

/// Everything was done.
pub const EXIT_OK: u8 = 0;
/// Something was not found, refused or not reached: it was named, and the rest was done.
pub const EXIT_PARTIAL: u8 = 1;
/// The call was wrong.
pub const EXIT_USAGE: u8 = 2;
/// The cluster could not be asked.
pub const EXIT_CLUSTER: u8 = 3;

/// What a verb has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// For standard output, each line ended.
    pub text: String,
    /// For standard error, each line ended.
    pub errors: String,
    /// The exit code.
    pub code: u8,
}

impl Said {
    /// Text, and nothing is wrong.
    pub fn text(text: String) -> Self {
        Self { text, errors: String::new(), code: EXIT_OK }
    }

    /// A document for programs on one line, or indented for people who look at it.
    pub fn json(value: &serde_json::Value, code: u8) -> Self {
        // By name, whatever serde_json was built with.
        let mut value = value.clone();
        value.sort_all_objects();
        Self { text: format!("{value}\n"), errors: String::new(), code }
    }
}
