//! Tools that put a gateway under load and keep the books: source, sink, ledger, stub DNS.
