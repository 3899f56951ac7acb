//! Places for looking into archives: few at once, as each takes memory and time that its sender chooses, and of those only some for one client network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::network_of;

/// The places.
#[derive(Debug)]
pub(crate) struct Walks {
    all: Arc<Semaphore>,
    of_network: usize,
    networks: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _share: Option<Share>,
    _place: OwnedSemaphorePermit,
}

/// A network's part in the places, as long as somebody of it has one or waits.
#[derive(Debug)]
struct Share {
    walks: &'static Walks,
    network: IpAddr,
    places: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held = None;
        let mut networks = self.walks.networks();
        // The table's and this one: nobody else is there or waits.
        if Arc::strong_count(&self.places) == 2 {
            networks.remove(&self.network);
        }
    }
}

impl Walks {
    pub(crate) fn new(all: usize, of_network: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_network, networks: Mutex::default() }
    }

    fn networks(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        // Every change is one statement.
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. `client` is `None` where the address hides who it is.
    pub(crate) async fn place(&'static self, client: Option<IpAddr>) -> Option<Place> {
        let share = match client.map(network_of) {
            None => None,
            Some(network) => {
                let places = Arc::clone(self.networks().entry(network).or_insert_with(|| Arc::new(Semaphore::new(self.of_network))));
                let mut share = Share { walks: self, network, places, held: None };
                share.held = Some(Arc::clone(&share.places).acquire_owned().await.ok()?);
                Some(share)
            }
        };
        let place = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _share: share, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn walks() -> &'static Walks {
        Box::leak(Box::new(Walks::new(4, 2)))
    }

    async fn soon(walks: &'static Walks, client: Option<[u8; 4]>) -> Option<Place> {
        timeout(Duration::from_millis(30), walks.place(client.map(IpAddr::from))).await.ok().flatten()
    }

    #[tokio::test]
    async fn one_network_leaves_places_for_others() {
        let walks = walks();
        let first = soon(walks, Some([192, 0, 2, 1])).await.expect("a place");
        let second = soon(walks, Some([192, 0, 2, 200])).await.expect("a place");
        assert!(soon(walks, Some([192, 0, 2, 3])).await.is_none(), "the network has its share");
        let other = soon(walks, Some([198, 51, 100, 1])).await.expect("others have places");
        let hidden = soon(walks, None).await.expect("so has who cannot be told apart");
        assert!(soon(walks, Some([203, 0, 113, 1])).await.is_none(), "four in all");
        drop(first);
        let again = soon(walks, Some([192, 0, 2, 3])).await.expect("a place was given back");
        drop((second, other, hidden, again));
        assert!(walks.networks().is_empty(), "nobody is remembered");
        assert_eq!(walks.all.available_permits(), 4);
    }
}
