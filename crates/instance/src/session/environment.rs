//! The environment of a command (ENV-1, ENV-3, ENV-4).

use std::ffi::CString;

use super::SessionContext;
use super::users::User;
use crate::spec::EnvVar;

/// PATH of every distribution (ENV-1).
pub(crate) const BASE_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games:/usr/local/games";

/// Variables in the order they were first set; a later value takes the place of an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Environment(Vec<(Vec<u8>, Vec<u8>)>);

impl Environment {
    fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((name.to_vec(), value.to_vec())),
        }
    }

    /// Returns a variable's value.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(n, _)| n == name.as_bytes())
            .map(|(_, v)| v.as_slice())
    }

    /// Returns the form that `execve` takes. Variables with NUL bytes cannot be there: [`build`] refuses them.
    pub(crate) fn to_c(&self) -> Vec<CString> {
        self.0
            .iter()
            .filter_map(|(n, v)| CString::new([n, &b"="[..], v].concat()).ok())
            .collect()
    }
}

/// A variable that no program can be given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadVariable(pub(crate) String);

/// Puts a command's environment together: base, the distribution's, the caller's, and what the user's record decides.
pub(crate) fn build(
    context: &SessionContext,
    asked: &[EnvVar],
    user: &User,
    lang: Option<Vec<u8>>,
) -> Result<Environment, BadVariable> {
    let mut env = Environment::default();
    env.set("HOSTTYPE", std::env::consts::ARCH);
    env.set("LANG", "en_US.UTF-8");
    env.set("PATH", BASE_PATH);
    env.set("TERM", "xterm-256color");
    for var in context.environment.iter().chain(asked) {
        if var.name.is_empty()
            || var.name.contains(&b'=')
            || var.name.contains(&0)
            || var.value.contains(&0)
        {
            return Err(BadVariable(String::from_utf8_lossy(&var.name).into_owned()));
        }
        env.set(&var.name, &var.value);
    }
    if !context.name.is_empty() {
        env.set("NAME", &context.hostname);
        env.set("WSL_DISTRO_NAME", &context.name);
    }
    if let Some(lang) = lang {
        env.set("LANG", lang);
    }
    env.set("HOME", &user.home);
    env.set("USER", &user.name);
    env.set("LOGNAME", &user.name);
    env.set("SHELL", &user.shell);
    Ok(env)
}

/// Finds the last `LANG=` line of a locale file, without quotes.
pub(crate) fn lang_of(text: &[u8]) -> Option<Vec<u8>> {
    let value = text
        .split(|&b| b == b'\n')
        .filter_map(|line| line.trim_ascii().strip_prefix(b"LANG="))
        .next_back()?;
    let bare = [b'"', b'\'']
        .iter()
        .find_map(|quote| value.strip_prefix(&[*quote])?.strip_suffix(&[*quote]));
    let value = bare.unwrap_or(value);
    (!value.is_empty() && !value.contains(&0)).then(|| value.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> SessionContext {
        SessionContext {
            name: "Debian".into(),
            hostname: "house".into(),
            environment: vec![EnvVar::new("TERM", "dumb"), EnvVar::new("A", "1")],
            default_users: Vec::new(),
            umask: 0o22,
        }
    }

    fn user() -> User {
        User {
            name: b"ada".to_vec(),
            uid: 1,
            gid: 1,
            groups: vec![1],
            home: b"/home/ada".to_vec(),
            shell: b"/bin/sh".to_vec(),
        }
    }

    #[test]
    fn a_caller_overrides_path_and_term_but_not_the_user() {
        let asked = [
            EnvVar::new("TERM", "xterm"),
            EnvVar::new("PATH", "/x"),
            EnvVar::new("HOME", "/evil"),
            EnvVar::new("NAME", "evil"),
            EnvVar::new("LANG", "de_DE.UTF-8"),
        ];
        let env = build(&context(), &asked, &user(), Some(b"C.UTF-8".to_vec())).unwrap();
        for (name, value) in [
            ("TERM", "xterm"),
            ("PATH", "/x"),
            ("A", "1"),
            ("HOME", "/home/ada"),
            ("NAME", "house"),
            ("WSL_DISTRO_NAME", "Debian"),
            ("LANG", "C.UTF-8"),
            ("LOGNAME", "ada"),
        ] {
            assert_eq!(env.get(name), Some(value.as_bytes()), "{name}");
        }
    }

    #[test]
    fn names_that_no_program_can_take_are_refused() {
        for name in ["", "a=b", "a\0"] {
            assert!(
                build(&context(), &[EnvVar::new(name, "x")], &user(), None).is_err(),
                "{name:?}"
            );
        }
        assert!(build(&context(), &[EnvVar::new("a", "x\0")], &user(), None).is_err());
    }

    #[test]
    fn the_last_lang_line_counts() {
        assert_eq!(
            lang_of(b"LANG=C\n#LANG=x\n LANG=\"de_DE.UTF-8\"\n").unwrap(),
            b"de_DE.UTF-8"
        );
        assert_eq!(lang_of(b"LANG='C'").unwrap(), b"C");
        assert_eq!(lang_of(b"LANGUAGE=de\nLANG="), None);
        assert_eq!(lang_of(b""), None);
    }
}
