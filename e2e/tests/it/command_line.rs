//! The verbs that need no running gateway, and the exit codes.

use std::path::Path;

use crate::support::*;

/// Manifests with the built-in engines, and a place for files.
async fn world() -> World {
    let world = World::new().await;
    world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
    world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), ""));
    world.write("example-org.yaml", &tenant("example-org", "example.org", 1, "  policy: {antiVirus: {infected: Quarantine}}"));
    world
}

async fn scan(world: &World, more: &[&str], input: &[u8]) -> Done {
    let (dir, resolver) = (world.manifests().display().to_string(), world.options().resolver.to_string());
    let mut arguments = vec!["scan", "--manifests", &dir, "--resolver", &resolver];
    arguments.extend(more);
    command(&arguments, input).await
}

fn file(world: &World, name: &str, content: &[u8]) -> String {
    let path = world.dir.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    std::fs::write(&path, content).expect("written");
    path.display().to_string()
}

#[tokio::test]
async fn scan_files_and_standard_input() {
    let world = world().await;
    let (clean, virus) = (file(&world, "clean.eml", &mail("hello", "clean")), file(&world, "virus.eml", &mail("file", &eicar())));
    let done = scan(&world, &[&clean], b"").await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.starts_with(&format!("{clean}: Deliver\n")) && done.out.contains("anti-virus: clean"), "{done:?}");
    assert_eq!(done.err, "", "nothing else is said");

    // 0 whatever the verdict; a file as an editor leaves it, and mbox's first line.
    let lines = String::from_utf8(mail("file", &eicar())).expect("text").replace("\r\n", "\n");
    for input in [lines.clone(), format!("From you@sender.example Wed Nov 25 08:00:00 2026\n{lines}")] {
        let done = scan(&world, &[], input.as_bytes()).await;
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.out.starts_with("-: Reject: malware") && done.out.contains("builtin-virus"), "{done:?}");
    }

    let done = scan(&world, &["--output", "json", &clean, &virus], b"").await;
    assert_eq!(done.code, 0, "{done:?}");
    let records: Vec<serde_json::Value> = done.out.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    assert_eq!(records.len(), 2, "{done:?}");
    assert_eq!((&records[0]["action"], &records[1]["action"], &records[1]["file"]), (&"Deliver".into(), &"Reject".into(), &virus.as_str().into()));
    assert_eq!(records[1]["reply"]["code"], 550, "{done:?}");

    // Another tenant's policy, and a client that SPF does not allow.
    let done = scan(&world, &["--tenant", "example.org", &virus], b"").await;
    assert!(done.code == 0 && done.out.contains("Quarantine: malware"), "{done:?}");
    let forged = String::from_utf8(mail("urgent", "pay")).expect("text").replace(SENDER, "ceo@bank.example");
    let done = scan(&world, &["--client-ip", "198.51.100.1", "--from", "ceo@bank.example"], forged.as_bytes()).await;
    assert!(done.code == 0 && done.out.contains("Reject: DMARC fail of bank.example"), "{done:?}");
}

#[tokio::test]
async fn scan_a_maildir_with_progress_for_people_only() {
    let world = world().await;
    for (name, content) in [("box/new/1", mail("a", "clean")), ("box/cur/2:2,S", mail("b", &gtube())), ("box/cur/3:2,S", mail("c", "clean"))] {
        file(&world, name, &content);
    }
    std::fs::create_dir(world.dir.path().join("box/tmp")).expect("a new directory");
    file(&world, "box/tmp/4", &mail("d", "not delivered yet"));
    file(&world, "box/dovecot.index", b"no message");
    let maildir = world.dir.path().join("box").display().to_string();
    let done = scan(&world, &[&maildir], b"").await;
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{done:?}");
    assert_eq!(done.out.lines().last(), Some("3 messages: Deliver 2, Reject 1"), "{done:?}");
    let done = scan(&world, &["--output", "json", &maildir], b"").await;
    assert_eq!(done.out.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count(), 3, "{done:?}");
    assert_eq!((done.out.lines().count(), done.err.as_str()), (3, ""), "nothing but JSON: {done:?}");
    // With a terminal (script(1) makes one) there is progress.
    let line = format!("{} scan --manifests {} {maildir}", binary().display(), world.manifests().display());
    let done = run("/usr/bin/script".into(), &["--quiet", "--return", "--command", &line, "/dev/null"], b"").await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains("\r1/3 ") && done.out.contains("\r3/3 ") && done.out.contains("3 messages: Deliver 2, Reject 1"), "{done:?}");
}

#[tokio::test]
async fn scan_says_what_it_could_not_do() {
    let world = world().await;
    let clean = file(&world, "clean.eml", &mail("hello", "clean"));
    let done = scan(&world, &["/nowhere/x.eml", &clean], b"").await;
    assert!(done.code == 1 && done.err.contains("/nowhere/x.eml") && done.out.contains("clean.eml: Deliver"), "{done:?}");
    let done = scan(&world, &["--tenant", "nobody.example", &clean], b"").await;
    assert!(done.code == 1 && done.err.contains("nobody.example") && done.err.contains("--tenant"), "{done:?}");
    let done = scan(&world, &["--from", "no address", &clean], b"").await;
    assert!(done.code == 1 && done.err.contains("no address"), "{done:?}");
    let done = command(&["scan", "--manifests", "/nowhere", &clean], b"").await;
    assert!(done.code == 1 && done.err.contains("/nowhere"), "{done:?}");
    world.write("fleet.yaml", "kind: [");
    let done = scan(&world, &[&clean], b"").await;
    assert!(done.code == 1 && done.err.contains("fleet.yaml"), "{done:?}");
}

#[tokio::test]
async fn usage_is_2_and_help_is_for_people() {
    for arguments in [
        &[][..],
        &["serve"],
        &["run"],
        &["check", "--manifest", "x"],
        &["run", "--manifests", "x", "--engine", "clamav"],
        &["run", "--manifests", "x", "--spool-max", "lots"],
        &["queue"],
        &["completion", "cmd"],
    ] {
        let done = command(arguments, b"").await;
        assert_eq!(done.code, 2, "{arguments:?}: {done:?}");
        assert!(done.err.contains("Usage") || done.err.contains("--help"), "{arguments:?}: {done:?}");
    }
    for arguments in [&["--help"][..], &["run", "--help"], &["queue", "drop", "--help"], &["--version"]] {
        let done = command(arguments, b"").await;
        assert!(done.code == 0 && done.err.is_empty() && done.out.contains("sekimori-mta"), "{arguments:?}: {done:?}");
    }
    let done = command(&["chek"], b"").await;
    assert!(done.err.contains("check"), "a suggestion: {done:?}");
}

#[tokio::test]
async fn completion_is_a_script_that_bash_can_read() {
    let done = command(&["completion", "bash"], b"").await;
    assert_eq!(done.code, 0);
    for word in ["quarantine", "--manifests", "--spool-max"] {
        assert!(done.out.contains(word), "{word}");
    }
    let checked = run(Path::new("/bin/bash").to_owned(), &["-n"], done.out.as_bytes()).await;
    assert_eq!((checked.code, checked.err.as_str()), (0, ""));
}
