//! Custom resources to parts of a snapshot.
