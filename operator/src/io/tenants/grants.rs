//! The grants, indexed, and made anew when one changed.

use sekimori_crds::compile::Grants;
use sekimori_crds::v1alpha1::DomainGrant;

use super::World;

/// The index over every grant that can be read. One that cannot be read grants nothing, and is told of.
pub(super) fn index(world: &World) -> Grants {
    let all = world.grants.state();
    let good: Vec<&DomainGrant> = all
        .iter()
        .filter_map(|guard| match &guard.0 {
            Ok(grant) => Some(grant),
            Err(invalid) => {
                tracing::error!(
                    grant = invalid.metadata.name,
                    error = invalid.error,
                    "the DomainGrant cannot be read by this operator, and grants nothing"
                );
                None
            }
        })
        .collect();
    Grants::new(good)
}
