//! Disks that are full, fail or rot.
