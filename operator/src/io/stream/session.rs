//! One gateway's stream.

use std::sync::Arc;
use std::time::Duration;

use sekimori_crds::stream::{Applied, FromGateway, Hello, Position, REPORT_EVERY_MS, TOKEN_REVIEW_EVERY_MS, ToGateway, from_gateway, to_gateway};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Status, Streaming};

use super::{ReviewError, StreamMetrics, TokenReviewer, refused};
use crate::distribution::{Way, pieces};
use crate::identity::{Identity, Refusal};
use crate::io::clock;
use crate::io::hub::Hub;
use crate::limiter::Limiter;

/// A gateway says Hello within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A piece that a gateway does not take for so long ends its stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream goes on so long while the API server cannot be asked about its token.
const UNREVIEWED_MAX: Duration = Duration::from_secs(3600);
/// Messages of one gateway: so many at once, and then so many a second. It reports every two seconds.
const MESSAGES: (u32, u32) = (200, 50);
/// Whole snapshots that one gateway may ask for: so many at once, and then one in this many milliseconds.
const RESYNCS: (u32, u64) = (3, 10_000);
/// No word of a gateway for so long ends its stream: it reports far more often.
const SILENCE_MAX: Duration = Duration::from_millis(30 * REPORT_EVERY_MS);

pub(super) struct Session {
    pub(super) hub: Hub,
    pub(super) identity: Identity,
    pub(super) token: String,
    pub(super) reviewer: Arc<dyn TokenReviewer>,
    pub(super) metrics: Arc<StreamMetrics>,
    pub(super) outbound: mpsc::Sender<Result<ToGateway, Status>>,
    pub(super) inbound: Streaming<FromGateway>,
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
        if let Some(have) = &hello.have {
            self.hub.outdo(have.epoch).await.map_err(|why| Status::unavailable(format!("the epoch cannot be raised: {why}")))?;
        }
        let mut sent = hello.have.clone();
        let mut seat = self.hub.seat(&self.identity, hello).map_err(|refusal| self.refuse(refusal))?;
        seat.orders.mark_changed();
        seat.moved.mark_changed();
        let mut review =
            tokio::time::interval_at(Instant::now() + Duration::from_millis(TOKEN_REVIEW_EVERY_MS), Duration::from_millis(TOKEN_REVIEW_EVERY_MS));
        review.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reviewed = Instant::now();
        let mut messages = Limiter::new(MESSAGES.0, MESSAGES.1);
        let mut resyncs = Resyncs { left: RESYNCS.0, at_ms: clock::unix_ms() };
        loop {
            let mut orders = seat.orders.clone();
            let mut moved = seat.moved.clone();
            tokio::select! {
                () = seat.ended() => return Err(Status::aborted("this pod is no gateway any more, or follows by a newer stream")),
                asked = orders.changed() => {
                    asked.map_err(|_| Status::aborted("this pod is no gateway any more"))?;
                    let orders = seat.orders.borrow_and_update().clone();
                    self.send(ToGateway { body: Some(to_gateway::Body::Orders(orders)) }).await?;
                }
                ticked = moved.changed() => {
                    ticked.map_err(|_| Status::aborted("the fleet is gone"))?;
                    seat.moved.mark_unchanged();
                    if let Some(way) = seat.way(sent.as_ref()) {
                        sent = Some(self.send_way(way).await?);
                    }
                }
                said = tokio::time::timeout(SILENCE_MAX, self.inbound.message()) => {
                    let said = said.map_err(|_| Status::deadline_exceeded("no word of the gateway for a minute"))?;
                    let said = said?.ok_or_else(|| Status::ok("the gateway ended it"))?;
                    if !messages.allows((), clock::unix_ms()) {
                        return Err(Status::resource_exhausted("too many messages: 50 a second are enough for a gateway"));
                    }
                    match said.body {
                        Some(from_gateway::Body::Applied(applied)) => {
                            if diverged(&applied, sent.as_ref()) && resyncs.allows(clock::unix_ms()) {
                                tracing::warn!(pod = self.identity.pod_name, fleet = %seat.fleet.name, "a gateway came to another hash: it gets everything again");
                                sent = None;
                                seat.moved.mark_changed();
                            }
                            seat.applied(applied);
                        }
                        Some(from_gateway::Body::Report(report)) => seat.report(report),
                        Some(from_gateway::Body::Token(token)) => {
                            self.token = token;
                            self.review_again(&mut reviewed).await?;
                        }
                        Some(from_gateway::Body::Hello(_)) | None => {}
                    }
                }
                _ = review.tick() => self.review_again(&mut reviewed).await?,
            }
        }
    }

    fn refuse(&self, refusal: Refusal) -> Status {
        self.metrics.refused.with_label_values(&[refusal.label()]).inc();
        refused(refusal)
    }

    async fn hello(&mut self) -> Result<Hello, Status> {
        let said = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()).await;
        match said.map_err(|_| Status::deadline_exceeded("no Hello within ten seconds"))?? {
            Some(FromGateway { body: Some(from_gateway::Body::Hello(hello)) }) => Ok(hello),
            _ => Err(Status::invalid_argument("a stream begins with Hello")),
        }
    }

    /// Asks about the token in force. While the API server cannot be asked, a stream that is open goes on for a while.
    async fn review_again(&self, reviewed: &mut Instant) -> Result<(), Status> {
        match self.reviewer.review(&self.token).await {
            Ok(identity) if identity == self.identity => {
                *reviewed = Instant::now();
                Ok(())
            }
            Ok(_) => Err(self.refuse(Refusal::AnotherPod)),
            Err(ReviewError::Refused(refusal)) => Err(self.refuse(refusal)),
            Err(ReviewError::Unavailable(why)) if reviewed.elapsed() > UNREVIEWED_MAX => {
                Err(Status::unavailable(format!("the API server cannot be asked about the token: {why}")))
            }
            Err(ReviewError::Unavailable(why)) => {
                tracing::warn!(pod = self.identity.pod_name, why, "a gateway's token could not be reviewed: its stream goes on for now");
                Ok(())
            }
        }
    }

    async fn send_way(&self, way: Way) -> Result<Position, Status> {
        let to = way.to.clone();
        if way.full {
            self.metrics.snapshots.inc();
        }
        for piece in pieces(way) {
            self.metrics.sent_bytes.inc_by(piece.changes.iter().map(|change| change.part.len() as u64).sum());
            self.send(ToGateway { body: Some(to_gateway::Body::Changes(piece)) }).await?;
        }
        Ok(to)
    }

    async fn send(&self, message: ToGateway) -> Result<(), Status> {
        match tokio::time::timeout(SEND_TIMEOUT, self.outbound.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::ok("the gateway is gone")),
            Err(_) => Err(Status::deadline_exceeded("the gateway takes nothing for a minute")),
        }
    }
}

/// Whether a gateway stands elsewhere than it should at the position that it was sent last. What it says of an earlier one is settled by what is under way.
fn diverged(applied: &Applied, sent: Option<&Position>) -> bool {
    let (Some(at), Some(sent)) = (&applied.position, sent) else { return applied.resync };
    let same = (at.epoch, at.number) == (sent.epoch, sent.number);
    same && (applied.resync || at.hash != sent.hash)
}

/// Whole snapshots on demand are rationed.
struct Resyncs {
    left: u32,
    at_ms: u64,
}

impl Resyncs {
    fn allows(&mut self, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.at_ms) >= RESYNCS.1 {
            self.at_ms = now_ms;
            self.left = (self.left + 1).min(RESYNCS.0);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}
