//! The contract of Sekimori: every shape that crosses a process boundary.
//!
//! * [`v1alpha1`]: the custom resources that users write;
//! * [`snapshot`]: what a gateway runs from;
//! * [`compile`]: from the first to the second, pure, one object at a time;
//! * [`stream`]: how a gateway gets the second from the operator, and what it says in return.
//!
//! [`mod@reference`] is what is generated from them. This crate has no client and takes no decision about a cluster or a message.

pub mod compile;
pub mod reference;
pub mod snapshot;
pub mod stream;
pub mod units;
pub mod v1alpha1;
pub mod vocabulary;
