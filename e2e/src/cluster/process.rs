//! Processes in network namespaces: started, found again, ended; and commands that may not hang.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Set by a Ctrl-C: waits and commands then end with an error, so that what was half made is taken down in order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends the waits and commands of this process that run now.
pub(super) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Before taking down, which has waits and commands of its own.
pub(super) fn interrupted_no_more() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}

/// How often a wait looks again.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// What a command wrote, and whether it went well.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code 0.
    pub success: bool,
    /// Standard output, UTF-8 or replaced.
    pub stdout: String,
    /// Standard error, UTF-8 or replaced.
    pub stderr: String,
    what: String,
}

impl Finished {
    /// Standard output, or an error that quotes what the command wrote on standard error.
    pub fn checked(self) -> anyhow::Result<String> {
        if self.success {
            return Ok(self.stdout);
        }
        bail!("{}: {}", self.what, if self.stderr.trim().is_empty() { self.stdout.trim() } else { self.stderr.trim() })
    }
}

/// Runs a command to its end; after `within` it is killed and that is an error.
pub fn run(command: &mut Command, stdin: Option<&[u8]>, within: Duration) -> anyhow::Result<Finished> {
    let what = describe(command);
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{what}: is the program installed? `make cluster` installs what it needs"))?;
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let reader = |stream: Option<Box<dyn std::io::Read + Send>>| {
            move || {
                let mut bytes = vec![];
                // What arrived before an error is still worth showing; the exit code tells the rest.
                stream.map(|mut stream| stream.read_to_end(&mut bytes).ok());
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        let stdout = scope.spawn(reader(output.map(|stream| Box::new(stream) as _)));
        let stderr = scope.spawn(reader(errors.map(|stream| Box::new(stream) as _)));
        if let (Some(mut input), Some(bytes)) = (input.take(), stdin) {
            // A command that does not read all its input says why on standard error.
            scope.spawn(move || input.write_all(bytes).ok());
        }
        let started = Instant::now();
        let mut status = child.try_wait()?;
        while status.is_none() {
            let interrupted = INTERRUPTED.load(Ordering::Relaxed);
            if interrupted || started.elapsed() > within {
                child.kill()?;
                child.wait()?;
                ensure!(!interrupted, "{what}: interrupted");
                bail!("{what}: no end after {} s", within.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
            status = child.try_wait()?;
        }
        let text = |reader: thread::ScopedJoinHandle<'_, String>| reader.join().unwrap_or_default();
        Ok(Finished { success: status.is_some_and(|status| status.success()), stdout: text(stdout), stderr: text(stderr), what })
    })
}

/// The same for a command whose output matters only if it fails.
pub(super) fn must(command: &mut Command) -> anyhow::Result<String> {
    run(command, None, Duration::from_secs(30))?.checked()
}

/// A command from words, for the many that take no spaces.
pub(super) fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// The command as one would name it: without the way into a namespace, paths of programs, and where a kubectl finds its cluster.
fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    let mut words = words.skip_while(|word| word == "nsenter" || word.starts_with("--net="));
    let mut text = words.next().map_or_else(String::new, |program| program.rsplit('/').next().unwrap_or_default().to_owned());
    while let Some(word) = words.next() {
        if word == "--kubeconfig" {
            words.next();
        } else if !word.starts_with("--cache-dir=") {
            text.push(' ');
            text.push_str(&word);
        }
    }
    text
}

/// Waits until `condition` holds; the error is what it last said.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match condition() {
            Ok(()) => return Ok(()),
            Err(error) if INTERRUPTED.load(Ordering::Relaxed) => return Err(error.context(format!("{what}: interrupted"))),
            Err(error) if started.elapsed() > within => return Err(error.context(format!("{what}: not after {} s", within.as_secs()))),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// The last lines of a log, indented, for an error.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n    ");
    format!("the end of {}:\n    {last}", log.display())
}

/// A network namespace with a name.
#[derive(Clone, Debug)]
pub(super) struct Namespace(pub(super) String);

impl Namespace {
    /// Where it is mounted.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(super) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// A command in it. `nsenter` and not `ip netns exec`: that one hides the cgroup mounts from what it starts.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// A short command in it that must go well.
    pub(super) fn must(&self, line: &str) -> anyhow::Result<String> {
        let mut all = line.split_whitespace();
        let mut command = self.command(all.next().unwrap_or_default());
        must(command.args(all))
    }

    /// Starts a component in it, in its own session (a Ctrl-C is not for it); its output is appended to `log`.
    pub(super) fn start(&self, log: &Path, command_line: &[String]) -> anyhow::Result<u32> {
        let file = fs::File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let mut command = self.command("setsid");
        command.args(command_line).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child = command.spawn().with_context(|| format!("nsenter {}", command_line.first().map_or("", String::as_str)))?;
        let id = child.id();
        // Reaped when it ends, so that no zombie looks like a living process.
        thread::Builder::new().name("reap".into()).spawn(move || child.wait())?;
        Ok(id)
    }

    /// The processes in it, but not this one nor those that it was started from.
    pub(super) fn processes(&self) -> Vec<u32> {
        let Ok(mine) = fs::metadata(self.path()) else { return vec![] };
        let spared = ancestors();
        let inside =
            |id: &u32| fs::metadata(format!("/proc/{id}/ns/net")).is_ok_and(|theirs| theirs.ino() == mine.ino() && theirs.dev() == mine.dev());
        all_processes().into_iter().filter(inside).filter(|id| !spared.contains(id)).collect()
    }

    /// Whether this process is in it and has `text` in its command line. A zombie has no command line.
    pub(super) fn is_component(&self, id: u32, text: &str) -> bool {
        command_line(id).is_some_and(|line| line.contains(text)) && self.processes().contains(&id)
    }
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn ancestors() -> Vec<u32> {
    let mut chain = vec![std::process::id()];
    while let Some(parent) = chain.last().and_then(|id| parent(*id)).filter(|id| *id > 1) {
        chain.push(parent);
    }
    chain
}

fn parent(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // After the command's closing bracket: state, parent (proc(5)).
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn command_line(id: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// Sends a signal. That the process is gone already is no error.
pub(super) fn signal(id: u32, signal: Signal) {
    if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // ESRCH is what is wanted; nothing else can happen to root.
        kill_process(id, signal).ok();
    }
}

/// Kills what `processes` names until it names none.
pub(super) fn kill_all(what: &str, mut processes: impl FnMut() -> Vec<u32>) -> anyhow::Result<()> {
    for _ in 0..100 {
        let living = processes();
        if living.is_empty() {
            return Ok(());
        }
        for id in living {
            signal(id, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("{what}: these processes do not end: {:?}", processes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_named_without_its_surroundings() {
        let mut command = Namespace("sekimori-x".into()).command("/cache/kube");
        command.args(["kubectl", "--kubeconfig", "/pki/admin", "--cache-dir=/c", "get", "pods"]);
        assert_eq!(describe(&command), "kube kubectl get pods");
    }

    #[test]
    fn a_command_that_hangs_is_killed_and_one_that_fails_says_why() {
        let started = Instant::now();
        let error = run(&mut words("sleep 60"), None, Duration::from_millis(100)).expect_err("too long");
        assert!(error.to_string().contains("sleep 60: no end after") && started.elapsed() < Duration::from_secs(20), "{error}");
        let error =
            run(Command::new("sh").args(["-c", "cat; echo why >&2; exit 3"]), Some(b"in"), Duration::from_secs(20)).and_then(Finished::checked);
        assert!(error.expect_err("exit 3").to_string().ends_with(": why"));
        let told = run(&mut words("cat"), Some(b"in"), Duration::from_secs(20)).and_then(Finished::checked);
        assert_eq!(told.expect("cat"), "in");
    }
}
