//! The certificates that vouch for the operator, brought to the pods' namespace. Public, and rotated without a new pod: the volume follows the ConfigMap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::fleet::Fleet;
use crate::names;
use crate::settings::Settings;

pub(super) fn authority(fleet: &Fleet<'_>, settings: &Settings) -> ConfigMap {
    ConfigMap {
        metadata: metadata(fleet, names::authority(&fleet.name)),
        data: Some(BTreeMap::from([("ca.crt".to_owned(), settings.authority_pem.clone())])),
        ..ConfigMap::default()
    }
}
