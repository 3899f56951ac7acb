//! Who a gateway is: what a TokenReview says of its token, judged. Whatever is missing there is a refusal.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::authentication::v1::TokenReviewStatus;

/// The pod's name, among what a TokenReview says beside the user.
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// The pod's uid.
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A pod, as the API server vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// Its name.
    pub pod_name: String,
    /// Its uid.
    pub pod_uid: String,
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none in the request.
    NoToken,
    /// The API server does not know it, or it has expired, or its pod is gone.
    NotAuthenticated,
    /// It is not for us.
    WrongAudience,
    /// It is no ServiceAccount's.
    NotAServiceAccount,
    /// It is bound to no pod.
    NotBoundToAPod,
    /// Its pod is none of a fleet's.
    NotAGateway,
    /// It is another pod's than the stream began with.
    AnotherPod,
    /// Too many attempts from one address.
    TooMany,
}

impl Refusal {
    /// For metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::NotAuthenticated => "not_authenticated",
            Self::WrongAudience => "wrong_audience",
            Self::NotAServiceAccount => "not_a_service_account",
            Self::NotBoundToAPod => "not_bound_to_a_pod",
            Self::NotAGateway => "not_a_gateway",
            Self::AnotherPod => "another_pod",
            Self::TooMany => "too_many",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoToken => "no token: send `authorization: Bearer TOKEN` with the pod's projected token",
            Self::NotAuthenticated => {
                "the API server does not accept the token: it has expired, or its pod is gone; the next one from the volume is tried"
            }
            Self::WrongAudience => "the token is for another audience: project one with the operator's --audience",
            Self::NotAServiceAccount => "the token is not a ServiceAccount's",
            Self::NotBoundToAPod => "the token is bound to no pod (name and uid): use a projected token, not a stored one",
            Self::NotAGateway => "the token's pod is no gateway of a fleet, or not known yet: try again",
            Self::AnotherPod => "the token is another pod's than the one that the stream began with",
            Self::TooMany => "too many attempts from this address: try again later",
        })
    }
}

/// What a TokenReview's status says.
///
/// # Errors
/// Whatever is missing or wrong in it.
pub fn identity(status: &TokenReviewStatus, audience: &str) -> Result<Identity, Refusal> {
    if status.authenticated != Some(true) {
        return Err(Refusal::NotAuthenticated);
    }
    // An API server that knows nothing of audiences names none: then the token may be for anybody.
    if !status.audiences.iter().flatten().any(|named| named == audience) {
        return Err(Refusal::WrongAudience);
    }
    let user = status.user.as_ref().ok_or(Refusal::NotAuthenticated)?;
    let (namespace, service_account) = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|rest| rest.split_once(':'))
        .filter(|(namespace, account)| !namespace.is_empty() && !account.is_empty())
        .ok_or(Refusal::NotAServiceAccount)?;
    let said = |extra: &BTreeMap<String, Vec<String>>, key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one.clone()),
        _ => Err(Refusal::NotBoundToAPod),
    };
    let extra = user.extra.as_ref().ok_or(Refusal::NotBoundToAPod)?;
    Ok(Identity {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod_name: said(extra, POD_NAME)?,
        pod_uid: said(extra, POD_UID)?,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn status() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["sekimori".to_owned()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:mail:inbound-gateway".to_owned()),
                extra: Some(
                    [(POD_NAME.to_owned(), vec!["inbound-gateway-0".to_owned()]), (POD_UID.to_owned(), vec!["u-0".to_owned()])].into_iter().collect(),
                ),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn a_bound_token_says_who_it_is() {
        let found = identity(&status(), "sekimori").expect("an identity");
        assert_eq!(
            (&*found.namespace, &*found.service_account, &*found.pod_name, &*found.pod_uid),
            ("mail", "inbound-gateway", "inbound-gateway-0", "u-0")
        );
    }

    #[test]
    fn whatever_is_missing_is_a_refusal() {
        type Extra = BTreeMap<String, Vec<String>>;
        let extra = |change: &dyn Fn(&mut Extra)| {
            let mut status = status();
            let user = status.user.as_mut().expect("a user");
            change(user.extra.get_or_insert_default());
            status
        };
        let named = |name: &str| {
            let mut status = status();
            status.user.as_mut().expect("a user").username = Some(name.to_owned());
            status
        };
        let cases = [
            (TokenReviewStatus { authenticated: Some(false), ..status() }, Refusal::NotAuthenticated),
            (TokenReviewStatus { authenticated: None, ..status() }, Refusal::NotAuthenticated),
            (TokenReviewStatus { user: None, ..status() }, Refusal::NotAuthenticated),
            (TokenReviewStatus { audiences: None, ..status() }, Refusal::WrongAudience),
            (TokenReviewStatus { audiences: Some(vec!["https://kubernetes.default.svc".to_owned()]), ..status() }, Refusal::WrongAudience),
            (named("kubernetes-admin"), Refusal::NotAServiceAccount),
            (named("system:serviceaccount::x"), Refusal::NotAServiceAccount),
            (extra(&|extra| drop(extra.remove(POD_UID))), Refusal::NotBoundToAPod),
            (extra(&|extra| drop(extra.remove(POD_NAME))), Refusal::NotBoundToAPod),
            (extra(&|extra| drop(extra.insert(POD_UID.to_owned(), vec![]))), Refusal::NotBoundToAPod),
            (extra(&|extra| drop(extra.insert(POD_UID.to_owned(), vec!["a".to_owned(), "b".to_owned()]))), Refusal::NotBoundToAPod),
            (extra(&|extra| drop(extra.insert(POD_UID.to_owned(), vec![String::new()]))), Refusal::NotBoundToAPod),
        ];
        for (status, refusal) in cases {
            assert_eq!(identity(&status, "sekimori"), Err(refusal), "{status:?}");
        }
    }
}
