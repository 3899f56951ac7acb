//! Running `sekimori-mta` in the gateways, through the API server.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::cluster::{Cluster, answer};
use crate::kubectl::messages::{Output, Reply};
use crate::kubectl::trouble::{Answer, Asked, Trouble, explain};
use crate::names::GATEWAY_CONTAINER;

/// Gateways that are asked at once.
const AT_ONCE: usize = 8;
/// Most bytes of an answer: a message of the largest size, or 10,000 lines of a list.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Most bytes of what a command complains.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;
/// Bytes that are read ahead.
const BUFFER_BYTES: usize = 64 << 10;

/// Somewhere to run a command: a cluster, or a test's.
pub(crate) trait Runner {
    /// Runs it in a pod's gateway.
    ///
    /// # Errors
    /// It could not be run, or its answer was cut off. `forbidden`: nor in any other pod.
    fn run(&self, pod: &str, command: &[String]) -> impl Future<Output = Result<Output, Trouble>>;
}

/// The gateways of one namespace.
pub(crate) struct Gateways<'a> {
    /// Where.
    pub(crate) cluster: &'a Cluster,
}

impl Runner for Gateways<'_> {
    async fn run(&self, pod: &str, command: &[String]) -> Result<Output, Trouble> {
        let namespace = &self.cluster.namespace;
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        let params = AttachParams {
            container: Some(GATEWAY_CONTAINER.to_owned()),
            max_stdout_buf_size: Some(BUFFER_BYTES),
            max_stderr_buf_size: Some(BUFFER_BYTES),
            ..AttachParams::default()
        };
        let asked = Asked { verb: "exec in", resource: "pods", group: "", namespace: Some(namespace), name: Some(pod) };
        let mut attached = api.exec(pod, command.iter().map(String::as_str), &params).await.map_err(|error| explain(&asked, &answer(&error)))?;
        let (stdout, stderr, status) = (attached.stdout(), attached.stderr(), attached.take_status());
        let (stdout, stderr) = tokio::join!(read(stdout, ANSWER_BYTES_MAX), read(stderr, COMPLAINT_BYTES_MAX));
        let stdout = stdout.map_err(|cause| Trouble::one(format!("its answer broke off: {cause}")))?;
        let stderr = stderr.map_err(|cause| Trouble::one(format!("its answer broke off: {cause}")))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        outcome(status, stdout, &stderr)
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    if let Some(stream) = stream {
        stream.take(bytes_max + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > bytes_max {
        return Err(std::io::Error::other(format!("it is larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// What the kubelet says when a command ended: success, its exit code, or that it could not be started.
fn outcome(status: Option<Status>, stdout: Vec<u8>, stderr: &[u8]) -> Result<Output, Trouble> {
    let stderr = String::from_utf8_lossy(stderr).into_owned();
    let Some(status) = status else {
        return Err(Trouble::one("the connection to it was lost"));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(Output { stdout, stderr, code: 0 });
    }
    let causes = status.details.into_iter().flat_map(|details| details.causes.unwrap_or_default());
    let code = causes.into_iter().find(|cause| cause.reason.as_deref() == Some("ExitCode")).and_then(|cause| cause.message?.parse().ok());
    match (status.reason.as_deref(), code) {
        (Some("NonZeroExitCode"), Some(code)) => Ok(Output { stdout, stderr, code }),
        _ => Err(Trouble::one(status.message.unwrap_or_else(|| "the command could not be run".to_owned()))),
    }
}

/// Runs a command of its own in each pod, a few at once, each with its deadline. The replies come back in the order of the pods.
///
/// # Errors
/// Running commands is forbidden: then no pod was reached, and none will be.
pub(crate) async fn run_all(runner: &impl Runner, jobs: Vec<(String, Vec<String>)>, timeout: Duration) -> Result<Vec<Reply>, Trouble> {
    let mut replies: Vec<(Reply, Option<Trouble>)> = stream::iter(jobs)
        .map(|(pod, command)| async move {
            match tokio::time::timeout(timeout, runner.run(&pod, &command)).await {
                Ok(Ok(output)) => (Reply { pod, outcome: Ok(output) }, None),
                Ok(Err(trouble)) => (Reply { pod, outcome: Err(trouble.text.clone()) }, Some(trouble)),
                Err(_) => (Reply { pod, outcome: Err(format!("no answer in {} s", timeout.as_secs())) }, None),
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    if let Some(at) = replies.iter().position(|(_, trouble)| trouble.as_ref().is_some_and(|trouble| trouble.forbidden)) {
        return Err(replies.swap_remove(at).1.unwrap_or_else(|| {
            explain(
                &Asked { verb: "exec in", resource: "pods", group: "", namespace: None, name: None },
                &Answer::Refused { code: 403, message: String::new() },
            )
        }));
    }
    let mut replies: Vec<Reply> = replies.into_iter().map(|(reply, _)| reply).collect();
    replies.sort_by(|a, b| a.pod.cmp(&b.pod));
    Ok(replies)
}
