//! Who the pods are. The account has no rights and its token is mounted nowhere; a pod has only the token for the operator, see `pod`.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::fleet::Fleet;
use crate::names;

pub(super) fn service_account(fleet: &Fleet<'_>) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(fleet, names::gateway_object(&fleet.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
