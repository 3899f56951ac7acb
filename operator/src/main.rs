//! `sekimori-operator`: its decisions are written (see the library), what acts on them is not. Until then this binary says so and exits with 2.

fn main() -> std::process::ExitCode {
    eprintln!("sekimori-operator does not run yet: run a gateway alone with `sekimori-mta run --manifests DIR`");
    std::process::ExitCode::from(2)
}
