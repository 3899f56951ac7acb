//! A gateway as a process in a pod: a scripted operator over TLS on one side, mail on the other.

mod operator;
mod process;
mod scenes;
