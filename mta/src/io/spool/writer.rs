//! The writer thread: drains what waits into one batch, writes and syncs it, answers, and looks after what is due. It never lingers for more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::disk::Lock;
use super::log::{COMPLETION_DELAY_MS, Log, Prepared};
use super::{Durable, SpoolError};
use crate::io::clock;

/// Bytes of one batch; a single larger record makes a batch of its own.
const BATCH_BYTES_MAX: u64 = 2 << 20;
/// How often an idle spool looks for stragglers.
const IDLE_TICK_MS: u64 = 5_000;

/// How often what could not be done is tried again.
const RETRY_MS: u64 = 1_000;

/// What a caller wants.
pub(super) enum Command {
    Append { record: Prepared, answer: oneshot::Sender<Result<Durable, SpoolError>>, permits: [OwnedSemaphorePermit; 2] },
    Flush { answer: oneshot::Sender<Result<(), SpoolError>> },
}

/// Commands on their way to the thread. Bounded by the permits that appends hold and by the callers that wait for a flush.
#[derive(Default)]
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// Completions wait: the thread must look at its deadlines again.
    nudged: bool,
    /// No more commands are taken.
    closing: bool,
    /// The thread has ended.
    closed: bool,
    closers: Vec<oneshot::Sender<Result<(), SpoolError>>>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while held")
    }

    /// A command that comes after the end is dropped, which is its answer.
    pub(super) fn send(&self, command: Command) {
        let mut queue = self.lock();
        if !queue.closing {
            queue.commands.push_back(command);
        }
        drop(queue);
        self.wake.notify_one();
    }

    pub(super) fn nudge(&self) {
        self.lock().nudged = true;
        self.wake.notify_one();
    }

    /// Asks the thread to end. The answer comes when all is written and the lock on the directory is gone.
    pub(super) fn close(&self, answer: Option<oneshot::Sender<Result<(), SpoolError>>>) {
        let mut queue = self.lock();
        queue.closing = true;
        if let Some(answer) = answer {
            if queue.closed {
                // It has ended already; that was answered to whoever closed it.
                answer.send(Ok(())).ok();
            } else {
                queue.closers.push(answer);
            }
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Waits for commands, at most so long; takes as many as make a batch.
    fn take(&self, wait_ms: u64) -> (Vec<Command>, bool) {
        let queue = self.lock();
        let waiting = |queue: &mut Queue| queue.commands.is_empty() && !queue.nudged && !queue.closing;
        let (mut queue, _) = self.wake.wait_timeout_while(queue, Duration::from_millis(wait_ms), waiting).expect("no panic while held");
        queue.nudged = false;
        let (mut commands, mut bytes) = (vec![], 0);
        while bytes < BATCH_BYTES_MAX
            && let Some(command) = queue.commands.pop_front()
        {
            if let Command::Append { record, .. } = &command {
                bytes += record.payload_bytes();
            }
            commands.push(command);
        }
        (commands, queue.closing && queue.commands.is_empty())
    }
}

/// Runs until the mailbox is closed.
pub(super) fn run(mut log: Log, lock: Option<Lock>, mailbox: &Arc<Mailbox>) {
    let ending = Ending(mailbox);
    let mut complained = false;
    loop {
        let wait_ms = if log.compacting() { 0 } else { wait_ms(&log, complained) };
        let (commands, last) = mailbox.take(wait_ms);
        serve(&mut log, commands);
        if last {
            break;
        }
        match log.tick(clock::unix_ms()) {
            Ok(()) => complained = false,
            // A failed log has said so itself; a full one goes on as soon as something is freed.
            Err(error) if !complained => {
                tracing::warn!(%error, "the spool could not do what was due");
                complained = true;
            }
            Err(_) => {}
        }
    }
    let outcome = if log.status().failed { Ok(()) } else { log.flush(clock::unix_ms()) };
    log.lock().closed = true;
    drop(log);
    // After the last write, before the answer: whoever closed it may open it again.
    drop(lock);
    let closers = std::mem::take(&mut mailbox.lock().closers);
    drop(ending);
    let mut outcome = Some(outcome);
    for closer in closers {
        // A closer that no longer waits needs no answer.
        closer.send(outcome.take().unwrap_or(Ok(()))).ok();
    }
}

/// However the thread ends, nobody waits for it any more: answers that were not given become errors.
struct Ending<'a>(&'a Mailbox);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        (queue.closing, queue.closed) = (true, true);
        let unanswered = (std::mem::take(&mut queue.commands), std::mem::take(&mut queue.closers));
        drop(queue);
        drop(unanswered);
    }
}

/// Until completions are due; a log that could not write them is asked less often.
fn wait_ms(log: &Log, complained: bool) -> u64 {
    match log.lock().pending_since_ms {
        Some(_) if complained => RETRY_MS,
        Some(since) => (since + COMPLETION_DELAY_MS).saturating_sub(clock::unix_ms()).clamp(10, COMPLETION_DELAY_MS),
        _ => IDLE_TICK_MS,
    }
}

fn serve(log: &mut Log, commands: Vec<Command>) {
    let (mut records, mut answers, mut flushes) = (vec![], vec![], vec![]);
    for command in commands {
        match command {
            Command::Append { record, answer, permits } => {
                records.push(record);
                answers.push((answer, permits));
            }
            Command::Flush { answer } => flushes.push(answer),
        }
    }
    if !records.is_empty() {
        let results = log.append_batch(records, clock::unix_ms());
        for ((answer, permits), result) in answers.into_iter().zip(results) {
            // A caller that was cancelled leaves a record that is found at the next start: kept rather than lost.
            answer.send(result).ok();
            drop(permits);
        }
    }
    for answer in flushes {
        answer.send(log.flush(clock::unix_ms())).ok();
    }
}
