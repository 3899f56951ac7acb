//! Candidates for kubectl's own completion of plugins: kubectl calls `kubectl_complete-sekimori` with the words so far and reads one candidate a line (with a
//! tab and a description), then `:` and a number that says what else to do (cobra's directives).

use std::fmt::Write as _;

use clap::Command;

/// Cobra: no file names besides.
const NO_FILES: u32 = 4;

/// What kubectl reads. The last word is the one that is being typed.
pub fn candidates(root: &Command, words: &[String]) -> String {
    let (typed, before) = words.split_last().map_or(("", [].as_slice()), |(typed, before)| (typed.as_str(), before));
    let mut command = root;
    let mut global: Vec<&clap::Arg> = root.get_arguments().filter(|argument| argument.is_global_set()).collect();
    let mut value_of = None;
    for word in before {
        let takes_value = |argument: &&clap::Arg| argument.get_action().takes_values() && says(argument, word);
        if value_of.take().is_some() {
            // The value of the flag before it, whatever it looks like.
            continue;
        }
        value_of = command.get_arguments().chain(global.iter().copied()).find(takes_value);
        if value_of.is_none()
            && !word.starts_with('-')
            && let Some(verb) = command.find_subcommand(word)
        {
            command = verb;
            global.extend(verb.get_arguments().filter(|argument| argument.is_global_set()));
        }
    }
    let mut text = String::new();
    let mut say = |candidate: &str, about: Option<String>| {
        if candidate.starts_with(typed) {
            let about = about.map(|about| format!("\t{about}")).unwrap_or_default();
            writeln!(text, "{candidate}{about}").expect("a string takes it");
        }
    };
    if let Some(argument) = value_of {
        for value in argument.get_possible_values() {
            say(value.get_name(), value.get_help().map(ToString::to_string));
        }
    } else if typed.starts_with('-') {
        let mut seen = std::collections::BTreeSet::new();
        for argument in command.get_arguments().chain(global.iter().copied()) {
            if let Some(long) = argument.get_long()
                && seen.insert(long)
            {
                say(&format!("--{long}"), argument.get_help().map(ToString::to_string));
            }
        }
    } else {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            say(verb.get_name(), verb.get_about().map(ToString::to_string));
        }
        for argument in command.get_positionals() {
            for value in argument.get_possible_values() {
                say(value.get_name(), value.get_help().map(ToString::to_string));
            }
        }
    }
    writeln!(text, ":{NO_FILES}").expect("a string takes it");
    text
}

fn says(argument: &clap::Arg, word: &str) -> bool {
    argument.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long))
        || argument.get_short().is_some_and(|short| word.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4])))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        let mut root = crate::kubectl::cli::Cli::command();
        root.build();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(&root, &words).lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn verbs_flags_and_values() {
        assert_eq!(names(&["qu"]), ["queue", "quarantine", ":4"]);
        assert_eq!(names(&["-n", "queue", "st"]), ["status", ":4"], "a flag's value is no verb");
        assert_eq!(names(&["queue", "r"]), ["retry", "release", ":4"]);
        assert_eq!(names(&["queue", "list", "--fl"]), ["--fleet", ":4"]);
        assert_eq!(names(&["quarantine", "list", "--dead"]), ["--dead-letters", ":4"]);
        assert_eq!(names(&["status", "--output", ""]), ["text", "json", ":4"]);
        assert_eq!(names(&["completion", ""]), ["bash", "zsh", "fish", ":4"]);
        assert!(!names(&[""]).iter().any(|name| name.starts_with("__")));
    }
}
