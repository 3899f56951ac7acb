//! One gateway's stream. It never waits for one thing alone: while a gateway is slow to take a snapshot, it is still heard, reviewed and cut off.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending};
use sekimori_crds::stream::{FromGateway, Hello, REPORT_EVERY_MS, ToGateway, from_gateway, to_gateway};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::connection::Peer;
use super::{ReviewError, StreamMetrics, TokenReviewer, refused};
use crate::distribution::{Pieces, pieces};
use crate::identity::{Identity, Refusal};
use crate::io::clock;
use crate::io::hub::{Hub, Next, Seat};
use crate::limiter::Limiter;

/// A gateway says Hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A message that a gateway does not take for so long ends its stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream goes on so long while the API server cannot be asked about its token.
const UNREVIEWED_MAX: Duration = Duration::from_secs(3600);
/// The API server is asked again after this, when it could not be.
const REVIEW_AGAIN: Duration = Duration::from_secs(30);
/// The Lease is tried again after this, when the epoch could not be written.
const OUTDO_AGAIN: Duration = Duration::from_secs(5);
/// Messages of one gateway: so many at once, and then so many a second. It reports every two seconds.
const MESSAGES: (u32, u32) = (200, 50);
/// Whole snapshots and fresh tokens of one stream: so many at once, and then one in this many milliseconds.
const RATION: (u32, u64) = (3, 10_000);
/// No word of a gateway for so long ends its stream: it reports far more often.
const SILENCE_MAX: Duration = Duration::from_millis(30 * REPORT_EVERY_MS);
/// A token is far below this, in bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;

pub(super) struct Session {
    pub(super) hub: Hub,
    pub(super) identity: Identity,
    pub(super) token: String,
    pub(super) review_every: Duration,
    pub(super) peer: Option<Peer>,
    pub(super) reviewer: Arc<dyn TokenReviewer>,
    pub(super) metrics: Arc<StreamMetrics>,
    pub(super) outbound: mpsc::Sender<Result<ToGateway, Status>>,
    pub(super) inbound: Streaming<FromGateway>,
}

/// What goes on beside the stream, one of each at most.
struct Aside {
    review: Option<BoxFuture<'static, Result<Identity, ReviewError>>>,
    review_at: Instant,
    reviewed: Instant,
    outdo: Option<BoxFuture<'static, Result<(), String>>>,
    /// When what is held back is looked at again.
    again_at: Option<Instant>,
}

/// What is on its way to the gateway.
struct Outgoing {
    way: Option<Pieces>,
    /// Since when it takes nothing.
    waits: Option<Instant>,
}

async fn of<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

impl Session {
    /// Serves until something ends it, and says what.
    pub(super) async fn run(mut self) -> Status {
        match self.serve().await {
            Ok(never) => never,
            Err(status) => status,
        }
    }

    async fn serve(&mut self) -> Result<Status, Status> {
        let hello = self.hello().await?;
        // Only who has a seat is listened to: any pod may have a token for our audience.
        let mut seat = self.hub.seat(&self.identity, hello).map_err(|refusal| self.refuse(refusal))?;
        self.peer.iter().for_each(Peer::admit);
        // Before this leader has looked at the fleet it has none, and the gateway keeps to those of the leader before.
        if seat.orders.borrow().now_ms > 0 {
            seat.orders.mark_changed();
        }
        seat.moved.mark_changed();
        let now = Instant::now();
        let review_at = now + self.review_every;
        let mut aside = Aside { review: None, review_at, reviewed: now, outdo: None, again_at: None };
        let mut outgoing = Outgoing { way: None, waits: None };
        let mut messages = Limiter::new(MESSAGES.0, MESSAGES.1);
        let (mut snapshots, mut tokens) = (Ration::new(), Ration::new());
        let mut heard = now;
        let outbound = self.outbound.clone();
        loop {
            if outgoing.way.is_none() && aside.outdo.is_none() && seat.moved.has_changed().unwrap_or(true) {
                self.look(&mut seat, &mut outgoing, &mut aside, &mut snapshots);
            }
            let sends = outgoing.way.is_some() || seat.orders.has_changed().unwrap_or(false);
            outgoing.waits = if sends { outgoing.waits.or_else(|| Some(Instant::now())) } else { None };
            let (mut orders, mut moved) = (seat.orders.clone(), seat.moved.clone());
            let (idle, settled, review_due) = (!sends, aside.outdo.is_none(), aside.review.is_none());
            let stuck = outgoing.waits.map(|since| since + SEND_TIMEOUT);
            tokio::select! {
                () = seat.ended() => return Err(Status::aborted("this pod is no gateway any more, or follows by a newer stream")),
                permit = outbound.reserve(), if sends => {
                    let permit = permit.map_err(|_| Status::ok("the gateway is gone"))?;
                    outgoing.waits = None;
                    if let Some(message) = self.message(&mut seat, &mut outgoing) {
                        permit.send(Ok(message));
                    }
                }
                () = at(stuck) => return Err(self.cut("slow", Status::deadline_exceeded("the gateway takes nothing for a minute"))),
                said = self.inbound.message() => {
                    heard = Instant::now();
                    let said = said?.ok_or_else(|| Status::ok("the gateway ended it"))?;
                    if !messages.allows((), clock::unix_ms()) {
                        return Err(self.cut("flood", Status::resource_exhausted("too many messages: 50 a second are enough for a gateway")));
                    }
                    self.hear(said, &mut seat, &mut aside, &mut tokens)?;
                }
                () = tokio::time::sleep_until(heard + SILENCE_MAX) => {
                    return Err(self.cut("silent", Status::deadline_exceeded("no word of the gateway for a minute")));
                }
                reviewed = of(&mut aside.review) => {
                    aside.review = None;
                    self.reviewed(reviewed, &mut aside)?;
                }
                () = tokio::time::sleep_until(aside.review_at), if review_due => aside.review = Some(self.review()),
                raised = of(&mut aside.outdo) => {
                    aside.outdo = None;
                    if let Err(why) = raised {
                        tracing::warn!(pod = self.identity.pod_name, why, "the epoch cannot be raised: this gateway waits");
                        aside.again_at = Some(Instant::now() + OUTDO_AGAIN);
                    } else {
                        seat.moved.mark_changed();
                    }
                }
                () = at(aside.again_at) => {
                    aside.again_at = None;
                    seat.moved.mark_changed();
                }
                // Only what wakes this loop: it looks for itself. A sender that is gone ends the seat, too.
                asked = orders.changed(), if idle => asked.map_err(|_| Status::aborted("this pod is no gateway any more"))?,
                ticked = moved.changed(), if idle && settled => ticked.map_err(|_| Status::aborted("the fleet is gone"))?,
            }
        }
    }

    fn look(&self, seat: &mut Seat, outgoing: &mut Outgoing, aside: &mut Aside, snapshots: &mut Ration) {
        seat.moved.mark_unchanged();
        let mut held_back = false;
        let next = seat.next(|| {
            held_back = !snapshots.allows(clock::unix_ms());
            !held_back
        });
        if held_back {
            aside.again_at = Some(Instant::now() + Duration::from_millis(RATION.1));
        }
        match next {
            Next::Way(way) => {
                self.metrics.snapshots.inc_by(u64::from(way.full));
                outgoing.way = Some(pieces(way));
            }
            Next::Outdo(seen) => {
                let hub = self.hub.clone();
                aside.outdo = Some(async move { hub.outdo(seen).await }.boxed());
            }
            Next::Nothing => {}
        }
    }

    /// Orders first: they are small, and a drain does not wait for a snapshot.
    fn message(&self, seat: &mut Seat, outgoing: &mut Outgoing) -> Option<ToGateway> {
        if seat.orders.has_changed().unwrap_or(false) {
            let mut orders = seat.orders.borrow_and_update().clone();
            orders.now_ms = clock::unix_ms();
            return Some(ToGateway { body: Some(to_gateway::Body::Orders(orders)) });
        }
        let piece = outgoing.way.as_mut()?.next();
        if piece.as_ref().is_none_or(|piece| piece.last) {
            outgoing.way = None;
            // What came meanwhile was not looked at.
            seat.moved.mark_changed();
        }
        let piece = piece?;
        self.metrics.sent_bytes.inc_by(piece.changes.iter().map(|change| change.part.len() as u64).sum());
        Some(ToGateway { body: Some(to_gateway::Body::Changes(piece)) })
    }

    fn hear(&mut self, said: FromGateway, seat: &mut Seat, aside: &mut Aside, tokens: &mut Ration) -> Result<(), Status> {
        match said.body {
            Some(from_gateway::Body::Applied(applied)) => {
                if seat.applied(applied) {
                    tracing::warn!(pod = self.identity.pod_name, fleet = %seat.fleet.name, "a gateway came to another hash: it gets everything again");
                    seat.moved.mark_changed();
                }
            }
            Some(from_gateway::Body::Report(report)) => seat.report(report),
            Some(from_gateway::Body::Token(token)) => {
                if token.len() > TOKEN_BYTES_MAX {
                    return Err(self.refuse(Refusal::NotAuthenticated));
                }
                if !tokens.allows(clock::unix_ms()) {
                    return Err(self.refuse(Refusal::TooMany));
                }
                // The newest counts: what is said of the one before no longer matters.
                self.token = token;
                aside.review = Some(self.review());
            }
            Some(from_gateway::Body::Hello(_)) | None => {}
        }
        Ok(())
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.metrics.refused.with_label_values(&[refusal.label()]).inc();
        refused(refusal)
    }

    fn cut(&self, label: &str, status: Status) -> Status {
        self.metrics.refused.with_label_values(&[label]).inc();
        status
    }

    async fn hello(&mut self) -> Result<Hello, Status> {
        let said = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()).await;
        match said.map_err(|_| self.cut("no_hello", Status::deadline_exceeded("no Hello within ten seconds")))?? {
            Some(FromGateway { body: Some(from_gateway::Body::Hello(hello)) }) => Ok(hello),
            _ => Err(self.cut("no_hello", Status::invalid_argument("a stream begins with Hello"))),
        }
    }

    fn review(&self) -> BoxFuture<'static, Result<Identity, ReviewError>> {
        let (reviewer, token) = (Arc::clone(&self.reviewer), self.token.clone());
        async move { reviewer.review(&token).await }.boxed()
    }

    /// What the API server said of the token in force. While it cannot be asked, a stream that is open goes on for a while.
    fn reviewed(&self, answer: Result<Identity, ReviewError>, aside: &mut Aside) -> Result<(), Status> {
        let now = Instant::now();
        match answer {
            Ok(identity) if identity == self.identity => {
                aside.reviewed = now;
                aside.review_at = now + self.review_every;
                Ok(())
            }
            Ok(_) => Err(self.refuse(Refusal::AnotherPod)),
            Err(ReviewError::Refused(refusal)) => Err(self.refuse(refusal)),
            Err(ReviewError::Unavailable(why)) if now.duration_since(aside.reviewed) > UNREVIEWED_MAX => {
                Err(self.cut("unreviewed", Status::unavailable(format!("the API server cannot be asked about the token for an hour: {why}"))))
            }
            Err(ReviewError::Unavailable(why)) => {
                tracing::warn!(pod = self.identity.pod_name, why, "a gateway's token could not be reviewed: its stream goes on for now");
                aside.review_at = now + REVIEW_AGAIN;
                Ok(())
            }
        }
    }
}

/// What a gateway may cause only so often.
struct Ration {
    left: u32,
    at_ms: u64,
}

impl Ration {
    fn new() -> Self {
        Self { left: RATION.0, at_ms: clock::unix_ms() }
    }

    fn allows(&mut self, now_ms: u64) -> bool {
        let earned = now_ms.saturating_sub(self.at_ms) / RATION.1;
        self.at_ms += earned * RATION.1;
        self.left = u32::try_from(earned).unwrap_or(u32::MAX).saturating_add(self.left).min(RATION.0);
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}
