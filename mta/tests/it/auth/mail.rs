//! Messages and envelopes for these tests.
