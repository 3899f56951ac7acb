//! The faults that later scenarios need, and that each of them heals.

use std::time::Duration;

use anyhow::ensure;

use crate::support::{Outcome, SHELL, Scenario, Stage, eventually, own_only, pod, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "faults::the_api_server_hangs_goes_and_comes", run: the_api_server_hangs_goes_and_comes },
    Scenario { name: "faults::a_node_is_lost_and_comes_back", run: a_node_is_lost_and_comes_back },
];

fn the_api_server_hangs_goes_and_comes(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let ask = || stage.cluster.kubectl_within(&["get", "namespaces", "--request-timeout=2s"], None, Duration::from_secs(10));
    stage.cluster.api_server_pause()?;
    let hung = ask()?;
    ensure!(!hung.success, "a stopped process answered: {}", hung.stdout);
    stage.cluster.api_server_start()?;
    ensure!(ask()?.success, "no answer after SIGCONT");
    stage.cluster.api_server_stop()?;
    let gone = ask()?;
    ensure!(!gone.success && gone.stderr.contains("refused"), "{}", gone.stderr);
    stage.cluster.api_server_start()?;
    ensure!(ask()?.success, "no answer after a new start");
    // Controllers work again: a Namespace gets its ServiceAccount.
    stage.namespace("after-the-api-server")?;
    Ok(Outcome::Passed)
}

fn a_node_is_lost_and_comes_back(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("lost")?;
    let on = |node: usize| {
        pod(&format!("on-{node}"), SHELL, ", args: [\"sleep 600\"]") + &format!("  nodeName: node{node}\n  tolerations: [{{operator: Exists}}]\n")
    };
    for node in [1, 2] {
        namespace.apply(&on(node))?;
        namespace.wait(&format!("pod/on-{node}"), "condition=Ready", 30)?;
    }
    stage.cluster.node_kill(2)?;
    let noticed = seconds(|| {
        eventually("node2 is not ready", 60, || {
            let ready = stage.kubectl(&["get", "node/node2", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"])?;
            ensure!(ready != "True", "{ready}");
            Ok(())
        })
    })?;
    ensure!(namespace.shell("on-1", "echo here")? == "here\n", "the other node suffers");
    let back = seconds(|| stage.cluster.node_start(2))?;
    let pods = seconds(|| {
        eventually("its pod runs again", 60, || {
            namespace.wait("pod/on-2", "condition=Ready", 5)?;
            ensure!(namespace.shell("on-2", "echo here")? == "here\n", "no answer");
            Ok(())
        })
    })?;
    println!("  a lost node is noticed after {noticed:.0} s; back: Ready after {back:.1} s, its pod {pods:.1} s later");
    Ok(Outcome::Passed)
}
