//! Tells a verb from the first word of a command.
//!
//! clap cannot take both `hostel list` and `hostel uname -a`. So the words are looked at once before: when the first
//! one that is not an option is not a verb either, `--` is put before it. Which options take a value is read from the
//! definition itself.

use std::ffi::OsString;

use clap::{Arg, Command};

/// Puts `--` before the first word of a command, and returns that word when it did.
///
/// `args` begins with the program's name. Verbs always win; with an unknown option nothing is changed, so that clap
/// tells the error.
pub(crate) fn mark_command(definition: &Command, args: &mut Vec<OsString>) -> Option<String> {
    let mut at = 1;
    while let Some(word) = args.get(at) {
        let bytes = word.as_encoded_bytes();
        match bytes {
            b"--" => return None,
            [b'-', b'-', long @ ..] => {
                let (name, has_value) = match long.iter().position(|b| *b == b'=') {
                    Some(end) => (&long[..end], true),
                    None => (long, false),
                };
                let arg = definition
                    .get_arguments()
                    .find(|a| a.get_long().is_some_and(|l| l.as_bytes() == name))?;
                at += if takes_value(arg) && !has_value { 2 } else { 1 };
            }
            [b'-', shorts @ ..] if !shorts.is_empty() => at += short_words(definition, shorts)?,
            _ => {
                let text = word.to_str();
                if text.is_some_and(|t| t == "help" || definition.find_subcommand(t).is_some()) {
                    return None;
                }
                let text = word.to_string_lossy().into_owned();
                args.insert(at, "--".into());
                return Some(text);
            }
        }
    }
    None
}

/// Returns how many words a bundle of short options takes; `None` for one that is not known.
fn short_words(definition: &Command, shorts: &[u8]) -> Option<usize> {
    for (i, short) in shorts.iter().enumerate() {
        let arg = definition
            .get_arguments()
            .find(|a| a.get_short() == Some(char::from(*short)))?;
        if takes_value(arg) {
            return Some(if i + 1 == shorts.len() { 2 } else { 1 });
        }
    }
    Some(1)
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Returns the verb that a word was perhaps meant to be.
pub(crate) fn close_verb(definition: &Command, word: &str) -> Option<String> {
    if word.len() < 3 || word.len() > 32 || !word.is_ascii() {
        return None;
    }
    let limit = if word.len() < 5 { 1 } else { 2 };
    definition
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| {
            (
                distance(word.as_bytes(), c.get_name().as_bytes()),
                c.get_name(),
            )
        })
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Counts the insertions, deletions, replacements and swaps of neighbours that make `a` of `b`.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::command;

    fn marked(words: &[&str]) -> (Vec<String>, Option<String>) {
        let mut args: Vec<OsString> = std::iter::once("hostel")
            .chain(words.iter().copied())
            .map(Into::into)
            .collect();
        let word = mark_command(&command(), &mut args);
        (
            args[1..]
                .iter()
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            word,
        )
    }

    #[test]
    fn verbs_win_and_everything_else_is_a_command() {
        for (words, want) in [
            (&[][..], &[][..]),
            (&["list", "-v"], &["list", "-v"]),
            (&["--json", "list"], &["--json", "list"]),
            (&["help", "list"], &["help", "list"]),
            (&["ls", "-la"], &["--", "ls", "-la"]),
            (&["-d", "list", "ls"], &["-d", "list", "--", "ls"]),
            (&["-dlist", "ls"], &["-dlist", "--", "ls"]),
            (&["--distro=x", "ls"], &["--distro=x", "--", "ls"]),
            (
                &["--distro", "x", "-u", "me", "ls", "--", "x"],
                &["--distro", "x", "-u", "me", "--", "ls", "--", "x"],
            ),
            (&["-qd", "x", "ls"], &["-qd", "x", "--", "ls"]),
            (&["-qdx", "list"], &["-qdx", "list"]),
            (&["--", "list"], &["--", "list"]),
            (&["-d", "x", "--", "ls"], &["-d", "x", "--", "ls"]),
            (&["--bogus", "ls"], &["--bogus", "ls"]),
            (&["-Z", "ls"], &["-Z", "ls"]),
            (&["-d"], &["-d"]),
            (&["-"], &["--", "-"]),
            (&[""], &["--", ""]),
        ] {
            assert_eq!(marked(words).0, want, "{words:?}");
        }
        assert_eq!(marked(&["lsit"]).1.as_deref(), Some("lsit"));
        assert_eq!(marked(&["list"]).1, None);
    }

    #[test]
    fn a_near_miss_of_a_verb_is_recognised() {
        for (word, want) in [
            ("lsit", Some("list")),
            ("statsu", Some("status")),
            ("shutdwon", Some("shutdown")),
            ("set_default", Some("set-default")),
            ("ls", None),
            ("make", None),
            ("python", None),
            ("__mn", None),
        ] {
            assert_eq!(close_verb(&command(), word).as_deref(), want, "{word}");
        }
    }
}
