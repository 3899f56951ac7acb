//! `sekimori-operator`: a skeleton. The fleet on Kubernetes is a later step; until then this binary says so and exits with 2.

fn main() -> std::process::ExitCode {
    eprintln!("sekimori-operator does nothing yet: run a gateway alone with `sekimori-mta run --manifests DIR`");
    std::process::ExitCode::from(2)
}
