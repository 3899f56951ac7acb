//! Reading from the API server, page by page; what it refuses comes back as a [`Trouble`] that says what to do.

use std::fmt::Debug;
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::kubectl::cli::{Common, Scope};
use crate::kubectl::trouble::{Answer, Asked, Trouble, explain};

/// Objects of one page.
const PAGE: u32 = 500;
/// A call may take so long until it is answered.
const CALL_WITHIN: Duration = Duration::from_secs(30);

/// A cluster and the namespace that is meant.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace of `-n`, else of the context.
    pub namespace: String,
    /// Whether `-n` was given.
    pub chosen: bool,
}

/// Which namespaces are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where<'a> {
    /// Every one.
    All,
    /// This one.
    One(&'a str),
}

impl<'a> Where<'a> {
    /// For [`Asked`].
    pub const fn namespace(self) -> Option<&'a str> {
        match self {
            Self::All => None,
            Self::One(namespace) => Some(namespace),
        }
    }
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked yet.
    ///
    /// # Errors
    /// No kubeconfig, no such context, credentials that cannot be read.
    pub async fn connect(common: &Common) -> Result<Self, Trouble> {
        let options = KubeConfigOptions { context: common.context.clone(), ..KubeConfigOptions::default() };
        let wrong = |error: &dyn std::fmt::Display| {
            Trouble::cluster(format!("no usable kubeconfig: {error}; set --kubeconfig or KUBECONFIG, and see kubectl config get-contexts"))
        };
        let mut config = match &common.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| wrong(&error))?
            }
            None if common.context.is_some() => Config::from_kubeconfig(&options).await.map_err(|error| wrong(&error))?,
            None => Config::infer().await.map_err(|error| wrong(&error))?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        let namespace = common.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| wrong(&error))?;
        Ok(Self { client, namespace, chosen: common.namespace.is_some() })
    }

    /// What a verb with `-A` looks at.
    pub fn scope(&self, scope: Scope) -> Where<'_> {
        if scope.all_namespaces { Where::All } else { Where::One(&self.namespace) }
    }

    /// Reads every object of a kind, page by page.
    ///
    /// # Errors
    /// The first page that was refused. Objects of earlier pages were seen.
    pub async fn each<K>(&self, place: Where<'_>, labels: Option<&str>, mut see: impl FnMut(DynamicObject) -> bool) -> Result<(), Trouble>
    where
        K: Resource<DynamicType = ()>,
    {
        let resource = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = match place {
            Where::All => Api::all_with(self.client.clone(), &resource),
            Where::One(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let asked = Asked { verb: "list", resource: &resource.plural, group: &resource.group, namespace: place.namespace(), name: None };
        let mut params = ListParams::default().limit(PAGE);
        if let Some(labels) = labels {
            params = params.labels(labels);
        }
        loop {
            let page = within(&asked, api.list(&params)).await?;
            for mut object in page.items {
                // The items of a list do not repeat what they are.
                object.types.get_or_insert_with(|| kube::api::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
                if !see(object) {
                    return Ok(());
                }
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(()),
            }
        }
    }

    /// Every object of a kind that can be read as this release knows it, and a word about those that cannot.
    ///
    /// # Errors
    /// As [`Cluster::each`].
    pub async fn all<K>(&self, place: Where<'_>, labels: Option<&str>, notes: &mut Vec<String>) -> Result<Vec<K>, Trouble>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let mut all = vec![];
        self.each::<K>(place, labels, |object| {
            match typed::<K>(object) {
                Ok(object) => all.push(object),
                Err(note) => notes.push(note),
            }
            true
        })
        .await?;
        Ok(all)
    }

    /// One object.
    ///
    /// # Errors
    /// It is not there, or may not be read.
    pub async fn one<K>(&self, namespace: &str, name: &str) -> Result<K, Trouble>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let resource = ApiResource::erase::<K>(&());
        let asked = Asked { verb: "get", resource: &resource.plural, group: &resource.group, namespace: Some(namespace), name: Some(name) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let object = within(&asked, api.get(name)).await?;
        typed(object).map_err(Trouble::cluster)
    }
}

/// An object as this release knows it.
///
/// # Errors
/// A word about it.
pub fn typed<K>(object: DynamicObject) -> Result<K, String>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let (namespace, name) = (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default());
    object.try_parse().map_err(|error| {
        let kind = K::kind(&());
        format!("{kind} {namespace}/{name} is not shown, as this release cannot read it ({error}): use plugin and definitions of one release")
    })
}

/// A call with a deadline.
pub(crate) async fn within<T>(asked: &Asked<'_>, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(CALL_WITHIN, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(explain(asked, &answer(&error))),
        Err(_) => Err(explain(asked, &Answer::Unreachable(format!("no answer in {} s", CALL_WITHIN.as_secs())))),
    }
}

/// What an error of the client means.
pub(crate) fn answer(error: &kube::Error) -> Answer {
    match error {
        kube::Error::Api(status) => Answer::Refused { code: status.code, message: status.message.clone() },
        kube::Error::SerdeError(error) => Answer::Unreadable(error.to_string()),
        kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => {
            Answer::Refused { code: code.as_u16(), message: "the connection was not upgraded".to_owned() }
        }
        other => Answer::Unreachable(chain(other)),
    }
}

/// An error with its causes, as the outermost of hyper's says next to nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}
