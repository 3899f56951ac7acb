//! The engines' images under the contract: socket in /run/sekimori/engine, /tmp as scratch, no root, read-only.

use anyhow::{Context as _, ensure};
use sekimori_e2e::images::recipes;

use crate::installation::{FLEET, until};
use crate::support::{Outcome, RESTRICTED, Scenario, Stage, eventually, own_only, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "engines::clamd_and_rspamd_scan_in_pods", run: clamd_and_rspamd_scan_in_pods },
    Scenario { name: "engines::a_fleet_scans_with_clamd_and_rspamd", run: a_fleet_scans_with_clamd_and_rspamd },
];

/// In the slots that the operator makes, and with nothing built in that could find the samples in their place.
fn a_fleet_scans_with_clamd_and_rspamd(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let installation = stage.installation()?;
    let engines = "  engines: [{name: clamav}, {name: rspamd}]\n  startup: {maxWait: 120s}\n";
    let fleet = installation.fleet_unready(stage, "real", 1, engines)?;
    for (name, class, protocol, image) in [
        ("clamav", "AntiVirus", "Clamd", stage.image(&recipes::clamav("test")?)?.pinned()),
        ("rspamd", "AntiSpam", "Rspamd", stage.image(&recipes::rspamd("test")?)?.pinned()),
    ] {
        fleet.namespace.apply(&format!(
            "apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: {name}}}\nspec:\n  class: {class}\n  protocol: {{type: {protocol}}}\n  \
             runtime: {{type: InPod, inPod: {{versionRef: {{name: {name}-1}}}}}}\n---\n\
             apiVersion: sekimori.dev/v1alpha1\nkind: EngineVersion\nmetadata: {{name: {name}-1}}\n\
             spec: {{engineRef: {{name: {name}}}, version: \"1\", image: \"{image}\"}}\n"
        ))?;
    }
    let ready = seconds(|| {
        fleet.namespace.wait(&format!("gatewayfleet/{FLEET}"), "condition=Ready", 180)?;
        fleet.serve("example-com", "example.com", "")
    })
    .with_context(|| fleet.explain())?;
    for engine in ["engine/clamav", "engine/rspamd"] {
        until(&fleet.namespace, engine, "Ready", "True", "Valid", 60).with_context(|| fleet.explain())?;
        until(&fleet.namespace, engine, "BreakerOpen", "False", "BreakerClosed", 5)?;
    }
    installation.probe(fleet.service()?, "user@example.com")?;
    fleet.post("user@example.com", 10)?;
    // The probe's clean message is in nobody's books.
    let balance = fleet.settle(30)?;
    // The test's signatures are a list without a date, so clamd says nothing of their age.
    until(&fleet.namespace, "engine/clamav", "SignaturesStale", "False", "NoSignatureAge", 5)?;
    println!("  Ready with clamd and rspamd after {ready:.1} s; EICAR and GTUBE refused, a clean message taken; {balance:?}");
    Ok(Outcome::Passed)
}

fn clamd_and_rspamd_scan_in_pods(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let namespace = stage.namespace("engines")?;
    let clamav = stage.image(&recipes::clamav("test")?)?.pinned();
    let rspamd = stage.image(&recipes::rspamd("test")?)?.pinned();
    let mut shell = sekimori_e2e::images::archive::Image::new("registry.local/asks:test", &["/usr/bin/bash", "-c"])?;
    for program in ["bash", "cat", "sleep", "curl"] {
        shell.files.program_at(&std::path::Path::new("/usr/bin").join(program), &format!("/usr/bin/{program}"))?;
    }
    shell.files.directory("/tmp", 0o1777);
    let asks = stage.image(&shell)?.pinned();
    let slot = |name: &str, image: &str| {
        format!(
            "  - {{name: {name}, image: \"{image}\", securityContext: {RESTRICTED}, volumeMounts: [{{name: sockets, mountPath: /run/sekimori/engine, subPath: {name}}}, {{name: scratch, \
             mountPath: /tmp, subPath: {name}}}]}}\n"
        )
    };
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: scan}}\nspec:\n  terminationGracePeriodSeconds: 2\n  securityContext: {{fsGroup: 65532}}\n  volumes: [{{name: sockets, emptyDir: {{}}}}, {{name: scratch, emptyDir: {{}}}}]\n  \
         containers:\n  - {{name: asks, image: \"{asks}\", args: [\"sleep 600\"], securityContext: {RESTRICTED}, volumeMounts: [{{name: sockets, mountPath: /run/engines}}]}}\n{}{}",
        slot("clamav", &clamav),
        slot("rspamd", &rspamd)
    ))?;
    namespace.wait("pod/scan", "condition=Ready", 60)?;
    // In two pieces, so that a scanner does not mistake this file for what it is about.
    let eicar = [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat();
    let gtube = ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"].concat();
    let ask = |script: &str| namespace.kubectl(&["exec", "scan", "-c", "asks", "--", "/usr/bin/bash", "-c", script]);
    // clamd(8): INSTREAM, then chunks with their length in four bytes, then an empty one. curl's telnet passes bytes on as they are.
    let scan = |text: &str| {
        let length: String = u32::try_from(text.len())?.to_be_bytes().iter().map(|byte| format!("\\{byte:03o}")).collect();
        let (text, null) = (text.replace('\\', "\\\\").replace('%', "%%"), "\\000\\000\\000\\000");
        ask(&format!(
            "(printf 'nINSTREAM\\n{length}{text}{null}'; sleep 1) | curl --silent --max-time 5 --unix-socket /run/engines/clamav/engine.sock telnet://engine"
        ))
    };
    eventually("clamd finds EICAR", 60, || {
        let answer = scan(&eicar)?;
        ensure!(answer.contains("Eicar-Test-Signature") && answer.contains("FOUND"), "{answer}");
        Ok(())
    })?;
    let clean = scan("good morning")?;
    ensure!(clean.contains(": OK"), "{clean}");
    // The first start compiles some 10,000 names: 12 s on an idle core.
    eventually("rspamd rejects GTUBE", 120, || {
        let mail = format!("From: <a@sender.example>\r\nTo: <b@example.com>\r\nSubject: x\r\n\r\n{gtube}\r\n");
        let answer =
            ask(&format!("curl --silent --max-time 5 --unix-socket /run/engines/rspamd/engine.sock --data-binary $'{mail}' http://engine/checkv2"))?;
        ensure!(answer.contains("\"action\":\"reject\""), "{answer}");
        Ok(())
    })?;
    Ok(Outcome::Passed)
}
