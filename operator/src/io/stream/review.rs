//! TokenReview at the API server.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::{ReviewError, TokenReviewer};
use crate::identity::{Identity, Refusal, identity};

/// A token is far below this; a longer one is not even sent on. In bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// A review may take so long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reviews at once.
const REVIEWS_MAX: usize = 16;

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
