//! `sekimori-mta`: see `sekimori-mta --help`.

fn main() {}
