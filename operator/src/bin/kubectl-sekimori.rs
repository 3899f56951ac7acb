//! The plugin `kubectl sekimori`.

fn main() -> std::process::ExitCode {
    sekimori_operator::io::kubectl::main()
}
