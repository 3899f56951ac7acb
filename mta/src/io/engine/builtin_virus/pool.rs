//! Threads that scan: each keeps its scanner, takes messages from one bounded channel, and is replaced when it does not come back.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::super::Answer;
use crate::io::clock;
use crate::message::Message;
use crate::verdict::{Failure, Finding, Unscannable};

/// How long after its deadline a scan is given to notice it: yara-x looks at the clock once a second.
pub(super) const GRACE_MS: u64 = 2_000;
/// Messages that wait, per thread. The guard's concurrency is the real bound; this one only says "no more".
const WAITING_PER_THREAD: usize = 8;
/// Threads that do not come back, per thread: beyond them none is replaced, and the engine answers `Busy`.
const LOST_PER_THREAD: usize = 4;

/// Scans one message.
pub(super) type Scan<'a> = dyn FnMut(&Message, &Deadline) -> Answer + 'a;
/// What a thread does: makes its scanner, and calls the given function with it.
pub(super) type Body = dyn Fn(&mut dyn FnMut(&mut Scan<'_>)) + Send + Sync;

/// When one scan has to be over.
#[derive(Debug)]
pub(super) struct Deadline {
    at_ms: u64,
    dropped: Arc<AtomicBool>,
}

impl Deadline {
    /// Milliseconds left, 0 when it is over.
    pub(super) fn left_ms(&self) -> u64 {
        if self.dropped.load(Ordering::Relaxed) { 0 } else { self.at_ms.saturating_sub(clock::monotonic_ms()) }
    }

    /// Time is up, or nobody waits for the answer.
    pub(super) fn is_over(&self) -> bool {
        self.left_ms() == 0
    }
}

struct Task {
    message: Arc<Message>,
    reply: oneshot::Sender<Result<Answer, Failure>>,
    /// The future that waits was dropped.
    dropped: Arc<AtomicBool>,
    started: Arc<AtomicBool>,
}

/// Says to the thread that nobody waits any more.
struct DropFlag(Arc<AtomicBool>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A thread, as seen from outside.
#[derive(Debug, Default)]
struct Worker {
    /// When its scan began, 0 between scans.
    since_ms: AtomicU64,
    /// It was replaced, and ends when it comes back.
    lost: AtomicBool,
}

/// The threads.
pub(super) struct Pool {
    tasks: mpsc::Sender<Task>,
    queue: Arc<Mutex<mpsc::Receiver<Task>>>,
    workers: Mutex<Vec<Arc<Worker>>>,
    lost: Arc<AtomicUsize>,
    threads: usize,
    scan_ms_max: u64,
    grace_ms: u64,
    body: Arc<Body>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn start(threads: usize, scan_ms_max: u64, grace_ms: u64, body: Arc<Body>) -> Self {
        let (tasks, queue) = mpsc::channel(threads * WAITING_PER_THREAD);
        let pool = Self {
            tasks,
            queue: Arc::new(Mutex::new(queue)),
            workers: Mutex::new(vec![]),
            lost: Arc::new(AtomicUsize::new(0)),
            threads,
            scan_ms_max,
            grace_ms,
            body,
        };
        pool.fill();
        pool
    }

    /// Scans a message on one of the threads.
    pub(super) async fn scan(&self, message: Arc<Message>) -> Result<Answer, Failure> {
        self.replace_lost();
        let (reply, answer) = oneshot::channel();
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = DropFlag(Arc::clone(&dropped));
        let started = Arc::new(AtomicBool::new(false));
        let task = Task { message, reply, dropped, started: Arc::clone(&started) };
        let patience = Duration::from_millis(self.scan_ms_max + self.grace_ms);
        match tokio::time::timeout(patience, self.tasks.send(task)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Failure::Busy),
        }
        let answer = tokio::time::timeout(patience, answer).await;
        drop(flag);
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Unreachable("the scanning thread ended".into())),
            Err(_) if started.load(Ordering::Relaxed) => {
                self.replace_lost();
                Ok(Answer { finding: Finding::Unscannable(Unscannable::LimitsExceeded), evidence: vec![], version: None })
            }
            Err(_) => Err(Failure::Busy),
        }
    }

    /// Gives up on threads whose scan should have been over, and starts others in their place.
    fn replace_lost(&self) {
        let now_ms = clock::monotonic_ms();
        let overdue = |worker: &Arc<Worker>| {
            let since_ms = worker.since_ms.load(Ordering::Relaxed);
            since_ms != 0 && now_ms.saturating_sub(since_ms) >= self.scan_ms_max + self.grace_ms
        };
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if !workers.iter().any(&overdue) {
            return;
        }
        workers.retain(|worker| {
            let keep = !overdue(worker) || self.lost.load(Ordering::Relaxed) >= self.threads * LOST_PER_THREAD;
            if !keep {
                worker.lost.store(true, Ordering::Relaxed);
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            keep
        });
        drop(workers);
        self.fill();
    }

    fn fill(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() < self.threads {
            let worker = Arc::new(Worker::default());
            let context = (Arc::clone(&worker), Arc::clone(&self.queue), Arc::clone(&self.body), Arc::clone(&self.lost), self.scan_ms_max);
            let spawned = std::thread::Builder::new().name("builtin-virus".into()).stack_size(8 << 20).spawn(move || {
                let (worker, queue, body, lost, scan_ms_max) = context;
                let mut again = true;
                while again {
                    again = false;
                    body(&mut |scan| again = work(&worker, &queue, scan_ms_max, scan));
                }
                if worker.lost.load(Ordering::Relaxed) {
                    lost.fetch_sub(1, Ordering::Relaxed);
                }
            });
            if let Err(error) = spawned {
                // The others go on; the next scan tries again.
                tracing::error!(%error, "cannot start a scanning thread of the built-in anti-virus engine");
                return;
            }
            workers.push(worker);
        }
    }
}

/// Scans until the channel closes or the thread is given up (`false`), or until a scan panicked and the scanner cannot be trusted any more (`true`).
fn work(worker: &Worker, queue: &Mutex<mpsc::Receiver<Task>>, scan_ms_max: u64, scan: &mut Scan<'_>) -> bool {
    while !worker.lost.load(Ordering::Relaxed) {
        let Some(task) = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv() else { return false };
        if task.dropped.load(Ordering::Relaxed) {
            continue;
        }
        task.started.store(true, Ordering::Relaxed);
        let now_ms = clock::monotonic_ms();
        worker.since_ms.store(now_ms.max(1), Ordering::Relaxed);
        let deadline = Deadline { at_ms: now_ms + scan_ms_max, dropped: task.dropped };
        // A decoder that panics on some bytes is that message's trouble: the guard makes it a suspect.
        let result = catch_unwind(AssertUnwindSafe(|| scan(&task.message, &deadline)));
        worker.since_ms.store(0, Ordering::Relaxed);
        let panicked = result.is_err();
        let result = result.map_err(|_| Failure::Unreachable("the scanner panicked on this message".into()));
        // Nobody waits any more: then nobody needs the answer.
        task.reply.send(result).ok();
        if panicked {
            return true;
        }
    }
    false
}
