//! One network namespace for the control plane, which holds a bridge, and one for each node, which hangs on it. Nothing is reachable from outside, and no
//! packet leaves: there is no route out.
//!
//! 10.250.0.1 control plane and DNS, 10.250.0.1N node N, 10.88.N.0/24 pods of node N, 10.96.0.0/24 Services.

use std::net::Ipv4Addr;

use super::process::must;
use super::process::words;
use super::state::State;
use super::{CONTROL_ADDRESS, node_address};

/// Makes the namespaces and the links between them.
pub(super) fn up(state: &State) -> anyhow::Result<()> {
    let control = state.control();
    must(&mut words(&format!("ip netns add {}", control.0)))?;
    control.must("ip link set lo up")?;
    control.must("ip link add lan type bridge")?;
    control.must(&format!("ip addr add {CONTROL_ADDRESS}/24 dev lan"))?;
    control.must("ip link set lan up")?;
    control.must("sysctl -qw net.ipv4.ip_forward=1")?;
    for number in 1..=state.nodes {
        let (node, address) = (state.node(number), node_address(number));
        must(&mut words(&format!("ip netns add {}", node.0)))?;
        node.must("ip link set lo up")?;
        control.must(&format!("ip link add n{number} type veth peer name eth0 netns {}", node.path().display()))?;
        control.must(&format!("ip link set n{number} master lan up"))?;
        node.must(&format!("ip addr add {address}/24 dev eth0"))?;
        node.must("ip link set eth0 up")?;
        node.must(&format!("ip route add default via {CONTROL_ADDRESS}"))?;
        node.must("sysctl -qw net.ipv4.ip_forward=1")?;
        control.must(&format!("ip route add 10.88.{number}.0/24 via {address}"))?;
    }
    services_through(state, 1)
}

/// Clients in the control plane's namespace reach Services through this node (one route, so it must not be the node that is killed).
pub(super) fn services_through(state: &State, node: usize) -> anyhow::Result<()> {
    state.control().must(&format!("ip route replace 10.96.0.0/24 via {}", node_address(node))).map(drop)
}

/// A node's cable: pulled, connections to it time out; a node that is only dead would refuse them.
pub(super) fn cable(state: &State, node: usize, plugged: bool) -> anyhow::Result<()> {
    let control = state.control();
    control.must(&format!("ip link set n{node} {}", if plugged { "up" } else { "down" }))?;
    if plugged {
        // The kernel forgets routes of a link that went down only if they name it; these name the bridge. Said again, it does no harm.
        control.must(&format!("ip route replace 10.88.{node}.0/24 via {}", node_address(node)))?;
    }
    Ok(())
}

/// The network of a node's pods.
pub(super) fn pods(node: usize) -> (Ipv4Addr, u8) {
    (Ipv4Addr::new(10, 88, u8::try_from(node).unwrap_or(0), 0), 24)
}
