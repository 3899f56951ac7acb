//! TokenReview at the API server.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{ReviewError, TokenReviewer};
use crate::identity::{Identity, Refusal, identity};

/// A token is far below this; a longer one is not even sent on. In bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// A review may take so long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reviews at once.
const REVIEWS_MAX: usize = 16;

/// A token that was good is good for so long, in milliseconds: a gateway that tries again at once costs no review. Its pod must be there all the same.
const REMEMBERED_MS: u64 = 10_000;
/// Tokens that are remembered, at most.
const REMEMBERED_MAX: usize = 1024;

/// Tokens that were good a moment ago, by their SHA-256.
#[derive(Default)]
pub(super) struct Remembered(HashMap<[u8; 32], (u64, Identity)>);

impl Remembered {
    pub(super) fn find(&self, token: &str, now_ms: u64) -> Option<Identity> {
        let (at_ms, identity) = self.0.get(&<[u8; 32]>::from(Sha256::digest(token)))?;
        (now_ms.saturating_sub(*at_ms) < REMEMBERED_MS).then(|| identity.clone())
    }

    pub(super) fn keep(&mut self, token: &str, identity: Identity, now_ms: u64) {
        if self.0.len() >= REMEMBERED_MAX {
            self.0.retain(|_, (at_ms, _)| now_ms.saturating_sub(*at_ms) < REMEMBERED_MS);
        }
        if self.0.len() < REMEMBERED_MAX {
            self.0.insert(Sha256::digest(token).into(), (now_ms, identity));
        }
    }
}

/// Asks a cluster.
pub struct KubeReviewer {
    api: Api<TokenReview>,
    audience: String,
    room: Semaphore,
}

impl KubeReviewer {
    /// Takes tokens for this audience.
    pub fn new(client: Client, audience: String) -> Self {
        Self { api: Api::all(client), audience, room: Semaphore::new(REVIEWS_MAX) }
    }

    async fn ask(&self, token: &str) -> Result<Identity, ReviewError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(ReviewError::Refused(Refusal::NotAuthenticated));
        }
        let _room = self.room.acquire().await.map_err(|error| ReviewError::Unavailable(error.to_string()))?;
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answered = tokio::time::timeout(TIMEOUT, self.api.create(&params, &review)).await;
        let review = answered.map_err(|_| ReviewError::Unavailable("no answer in time".to_owned()))?;
        let status = review.map_err(|error| ReviewError::Unavailable(error.to_string()))?.status;
        identity(&status.unwrap_or_default(), &self.audience).map_err(ReviewError::Refused)
    }
}

impl TokenReviewer for KubeReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Identity, ReviewError>> {
        self.ask(token).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_token_is_remembered_for_a_moment_and_few_are() {
        let identity = |n: usize| Identity {
            namespace: "mail".into(),
            service_account: "inbound-gateway".into(),
            pod_name: format!("inbound-gateway-{n}"),
            pod_uid: format!("uid-{n}"),
        };
        let mut remembered = Remembered::default();
        remembered.keep("a", identity(0), 1000);
        assert_eq!(remembered.find("a", 1000 + REMEMBERED_MS - 1), Some(identity(0)));
        assert_eq!((remembered.find("a", 1000 + REMEMBERED_MS), remembered.find("b", 1000)), (None, None));
        for n in 0..5000 {
            remembered.keep(&n.to_string(), identity(n), 2000);
        }
        assert_eq!(remembered.0.len(), REMEMBERED_MAX);
        remembered.keep("later", identity(1), 2000 + REMEMBERED_MS);
        assert_eq!(remembered.0.len(), 1, "what is too old makes room");
    }
}
