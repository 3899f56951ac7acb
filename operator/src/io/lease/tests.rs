//! The Lease against an API server in memory, in real time.

use serde_json::{Value, json};

use super::*;
use crate::election::RENEW_MS;
use crate::io::api_server::ApiServer;

const LEASES: &str = "coordination.k8s.io/v1/leases";

fn lease(server: &ApiServer) -> Value {
    server.object(LEASES, "sekimori", "operator").expect("a Lease")
}

fn holder(server: &ApiServer) -> String {
    lease(server)["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.unwrap_or_else(|_| panic!("{what}: not within {seconds} s"))
}

#[tokio::test]
async fn it_is_made_given_back_and_taken_with_the_next_epoch() {
    let server = ApiServer::new();
    let client = server.client();
    let first = within(5, "acquired", acquire(&client, "sekimori", "operator", "a")).await;
    assert_eq!((first.epoch().await, holder(&server).as_str()), (1, "a"));
    let second = tokio::spawn(async move { acquire(&client, "sekimori", "operator", "b").await.epoch().await });
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(!second.is_finished(), "it is held");
    first.release().await;
    assert_eq!(within(5, "taken over", second).await.expect("no panic"), 2);
    assert_eq!((holder(&server).as_str(), &lease(&server)["metadata"]["annotations"][EPOCH]), ("b", &json!("2")));
}

#[tokio::test]
async fn of_two_that_take_it_at_once_one_gets_it() {
    let server = ApiServer::new();
    let both = ["a", "b"].map(|me| {
        let client = server.client();
        tokio::spawn(async move { acquire(&client, "sekimori", "operator", me).await })
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(both.iter().filter(|task| task.is_finished()).count(), 1);
    both.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn epochs_rise_above_what_was_seen_and_stay() {
    let server = ApiServer::new();
    let held = within(5, "acquired", acquire(&server.client(), "sekimori", "operator", "a")).await;
    assert_eq!(held.raise(41).await, Ok(42));
    assert_eq!(held.raise(7).await, Ok(43), "never one that was served before");
    held.release().await;
    let next = within(5, "acquired", acquire(&server.client(), "sekimori", "operator", "b")).await;
    assert_eq!(next.epoch().await, 44);
}

#[tokio::test]
async fn it_is_renewed_over_foreign_writes_and_lost_to_another_holder() {
    let server = ApiServer::new();
    let held = Arc::new(within(5, "acquired", acquire(&server.client(), "sekimori", "operator", "a")).await);
    let keeping = tokio::spawn(Arc::clone(&held).keep());
    // Somebody writes a label into it: still ours.
    let mut touched = lease(&server);
    touched["metadata"]["labels"] = json!({"seen": "true"});
    server.put(LEASES, touched);
    let before = lease(&server)["spec"]["renewTime"].clone();
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!keeping.is_finished());
    assert_ne!(lease(&server)["spec"]["renewTime"], before, "renewed");
    assert_eq!(lease(&server)["metadata"]["labels"]["seen"], "true");
    let mut stolen = lease(&server);
    stolen["spec"]["holderIdentity"] = json!("b");
    server.put(LEASES, stolen);
    within(RENEW_MS / 1000 + 2, "lost", keeping).await.expect("no panic");
    assert_eq!(holder(&server), "b", "the former holder writes no more");
}

#[tokio::test]
async fn one_that_cannot_be_renewed_is_given_up_before_another_may_take_it() {
    let server = ApiServer::new();
    let held = Arc::new(within(5, "acquired", acquire(&server.client(), "sekimori", "operator", "a")).await);
    server.writes_left(Some(0));
    let begun = Instant::now();
    within(DURATION_MS / 1000, "given up", held.keep()).await;
    assert!(begun.elapsed() < Duration::from_millis(DURATION_MS - 1_000), "{:?}", begun.elapsed());
}

use tokio::task::JoinHandle;
