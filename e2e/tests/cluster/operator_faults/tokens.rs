//! Who may follow the configuration: attacks with tokens on the operator's stream, judged by the real API server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use sekimori_crds::snapshot::FORMAT;
use sekimori_crds::stream::configuration_client::ConfigurationClient;
use sekimori_crds::stream::{FromGateway, Hello, ToGateway, from_gateway};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::installation::{Gateway, Installation, NAMESPACE};
use crate::support::{SHELL, eventually, pod};

/// What gateways' tokens are for.
const AUDIENCE: &str = "sekimori";
/// The fleet's ServiceAccount.
const ACCOUNT: &str = "quickstart-gateway";
/// Any answer of the operator comes sooner.
const WITHIN: Duration = Duration::from_secs(15);

/// A client that has no business here, or pretends so.
pub(super) struct Attacker {
    runtime: Runtime,
    client: ConfigurationClient<Channel>,
}

/// A stream that was let in.
struct Admitted {
    sender: mpsc::Sender<FromGateway>,
    inbound: Streaming<ToGateway>,
}

impl Attacker {
    /// Connects to the operator that leads.
    pub(super) fn new(installation: &Installation<'_>) -> anyhow::Result<Self> {
        let authority = installation.text("configmap/quickstart-operator-authority", "/data/ca.crt")?;
        let address = installation.service("sekimori-operator")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let name = format!("sekimori-operator.{NAMESPACE}.svc");
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(name);
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect_timeout(WITHIN);
        let client = ConfigurationClient::new(runtime.block_on(endpoint.connect())?);
        Ok(Self { runtime, client })
    }

    /// Says Hello with this token; the operator's first word, or its refusal.
    fn hello(&self, token: Option<&str>) -> anyhow::Result<Result<Admitted, Status>> {
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let (sender, receiver) = mpsc::channel(4);
            sender.send(FromGateway { body: Some(from_gateway::Body::Hello(Hello { format: FORMAT, ..Hello::default() })) }).await?;
            let mut request = Request::new(ReceiverStream::new(receiver));
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
            }
            let first = async {
                let mut inbound = client.follow(request).await?.into_inner();
                let said = inbound.message().await?;
                said.map(|_| Admitted { sender, inbound }).ok_or_else(|| Status::unknown("it ended without a word"))
            };
            tokio::time::timeout(WITHIN, first).await.context("no answer")
        })
    }

    fn refused(&self, what: &str, token: Option<&str>, code: Code, because: &str) -> anyhow::Result<()> {
        match self.hello(token)? {
            Ok(_) => bail!("{what}: let in"),
            Err(status) => {
                ensure!(status.code() == code && status.message().contains(because), "{what}: {status}");
                println!("  {what}: {code:?}, {}", status.message());
                Ok(())
            }
        }
    }

    fn admitted(&self, what: &str, token: &str) -> anyhow::Result<Admitted> {
        self.hello(Some(token))?.map_err(|status| anyhow::anyhow!("{what}: refused, {status}"))
    }

    /// A stream goes on with this token; how it ends.
    fn goes_on_with(&self, mut stream: Admitted, token: String) -> anyhow::Result<Status> {
        self.runtime.block_on(async {
            stream.sender.send(FromGateway { body: Some(from_gateway::Body::Token(token)) }).await?;
            let end = async {
                loop {
                    match stream.inbound.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return Status::ok("it ended without a word"),
                        Err(status) => return status,
                    }
                }
            };
            tokio::time::timeout(WITHIN, end).await.context("the stream goes on with another pod's token")
        })
    }
}

/// A token as the API server makes it for whoever may ask for one.
fn minted(installation: &Installation<'_>, account: &str, audience: Option<&str>, pod: Option<(&str, &str)>) -> anyhow::Result<String> {
    let mut arguments = vec!["create".to_owned(), "token".into(), account.into()];
    arguments.extend(audience.map(|audience| format!("--audience={audience}")));
    if let Some((name, uid)) = pod {
        arguments.extend(["--bound-object-kind=Pod".into(), format!("--bound-object-name={name}"), format!("--bound-object-uid={uid}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(installation.kubectl(&arguments)?.trim().to_owned())
}

/// A token that no API server would make, under the cluster's own key: what kubectl cannot ask for, such as one that has expired.
fn forged(key_pem: &str, claims: &Value) -> anyhow::Result<String> {
    let der = KeyPair::from_pem(key_pem)?.serialize_der();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|error| anyhow::anyhow!("the key: {error}"))?;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT"})), part(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|error| anyhow::anyhow!("signing: {error}"))?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
}

/// Claims of a gateway's projected token that ends so many seconds from now.
fn claims(installation: &Installation<'_>, gateway: &Gateway, seconds: i64) -> anyhow::Result<Value> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let account = installation.text(&format!("serviceaccount/{ACCOUNT}"), "/metadata/uid")?;
    Ok(json!({
        "iss": "https://kubernetes.default.svc", "aud": [AUDIENCE], "sub": format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}"),
        "iat": now - 3600, "nbf": now - 3600, "exp": now + seconds,
        "kubernetes.io": {
            "namespace": NAMESPACE,
            "serviceaccount": {"name": ACCOUNT, "uid": account},
            "pod": {"name": gateway.name, "uid": gateway.uid},
        },
    }))
}

/// Every attack is refused, and every kind of token that is refused has a twin that is let in, so that the refusal means what it says.
pub(super) fn attack(installation: &Installation<'_>) -> anyhow::Result<()> {
    let gateways = installation.gateways()?;
    let [first, second] = gateways.as_slice() else { bail!("two gateways") };
    let of = |gateway: &Gateway| minted(installation, ACCOUNT, Some(AUDIENCE), Some((&gateway.name, &gateway.uid)));
    let own = of(first)?;
    let attacker = Attacker::new(installation)?;

    attacker.refused("no token", None, Code::Unauthenticated, "no token")?;
    attacker.refused("nonsense", Some("eyJhbGciOiJub25lIn0.e30."), Code::Unauthenticated, "does not accept")?;
    let bound = Some((first.name.as_str(), first.uid.as_str()));
    for (what, audience) in [("for another audience", Some("vault")), ("for the API server", None)] {
        attacker.refused(what, Some(&minted(installation, ACCOUNT, audience, bound)?), Code::Unauthenticated, "does not accept")?;
    }
    attacker.refused("bound to no pod", Some(&minted(installation, ACCOUNT, Some(AUDIENCE), None)?), Code::PermissionDenied, "bound to no pod")?;
    strangers(installation, &attacker)?;
    forgeries(installation, &attacker, first)?;

    turns_into_another(&attacker, &own, &of(second)?)?;
    flood(installation, &attacker)
}

/// A stream that began with one pod's token goes on with another's.
fn turns_into_another(attacker: &Attacker, own: &str, others: &str) -> anyhow::Result<()> {
    eventually("a stream that turns into another pod's ends", 20, || {
        std::thread::sleep(Duration::from_millis(500));
        let stream = attacker.admitted("the gateway's own token", own)?;
        // The gateway itself comes back soon, and takes its place again.
        let ended = attacker.goes_on_with(stream, others.to_owned())?;
        ensure!(ended.code() == Code::PermissionDenied && ended.message().contains("another pod"), "{ended}");
        println!("  a stream that turns into another pod's: {ended}");
        Ok(())
    })
}

/// Pods that are no gateways: one of another ServiceAccount, one of the fleet's own, and one that is gone.
fn strangers(installation: &Installation<'_>, attacker: &Attacker) -> anyhow::Result<()> {
    for (name, account) in [("stranger", "default"), ("pretender", ACCOUNT)] {
        installation.apply(&(pod(name, SHELL, ", args: [\"sleep 600\"]") + &format!("  serviceAccountName: {account}\n")))?;
        let uid = installation.text(&format!("pod/{name}"), "/metadata/uid")?;
        let token = minted(installation, account, Some(AUDIENCE), Some((name, &uid)))?;
        attacker.refused(&format!("a pod of {account} that is no gateway"), Some(&token), Code::PermissionDenied, "no gateway of a fleet")?;
        installation.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"])?;
        eventually("the API server knows that the pod is gone", 30, || {
            // A token that was good a moment ago is remembered for ten seconds, and who tries too often is refused for that.
            std::thread::sleep(Duration::from_secs(1));
            attacker.refused("a pod that is gone", Some(&token), Code::Unauthenticated, "does not accept")
        })?;
    }
    Ok(())
}

fn forgeries(installation: &Installation<'_>, attacker: &Attacker, gateway: &Gateway) -> anyhow::Result<()> {
    let key = std::fs::read_to_string(installation.stage.cluster.scratch().join("pki/sa.key"))?;
    let good = claims(installation, gateway, 600)?;
    attacker.admitted("one that is as it should be", &forged(&key, &good)?)?;
    let mut without_uid = good.clone();
    if let Some(pod) = without_uid.pointer_mut("/kubernetes.io/pod").and_then(Value::as_object_mut) {
        pod.remove("uid");
    }
    let mut other_uid = good.clone();
    other_uid["kubernetes.io"]["pod"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    let other_key = KeyPair::generate()?.serialize_pem();
    for (what, key, claims) in [
        ("expired", &key, &claims(installation, gateway, -60)?),
        ("without the pod's uid", &key, &without_uid),
        ("with another uid", &key, &other_uid),
        ("signed by somebody else", &other_key, &good),
    ] {
        attacker.refused(what, Some(&forged(key, claims)?), Code::Unauthenticated, "does not accept")?;
    }
    Ok(())
}

/// One address cannot keep the operator busy, and the gateways do not feel it.
fn flood(installation: &Installation<'_>, attacker: &Attacker) -> anyhow::Result<()> {
    let mut refused = 0;
    for _ in 0..60 {
        if let Err(status) = attacker.hello(Some("x"))? {
            refused += u32::from(status.code() == Code::ResourceExhausted);
        }
    }
    ensure!(refused >= 20, "only {refused} of 60 attempts within a moment were refused as too many");
    let metrics = installation.leader_metrics()?;
    let counted = |reason: &str| metrics.contains(&format!("sekimori_operator_stream_refused_total{{reason=\"{reason}\"}}"));
    for reason in ["no_token", "not_authenticated", "not_bound_to_a_pod", "not_a_gateway", "another_pod", "too_many"] {
        ensure!(counted(reason), "refusals as {reason} were not counted:\n{metrics}");
    }
    println!("  60 attempts of one address at once: {refused} refused as too many");
    Ok(())
}
