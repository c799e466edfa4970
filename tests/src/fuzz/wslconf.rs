//! Configuration files that people and distributions write.

use std::net::IpAddr;

use hostel_wslconf::{
    DistributionConf, EditError, FileKind, MachineConf, NetworkingMode, Warning, WslConf,
    clean_hostname, host_entries, hosts_text, remove, resolv_conf_text, set,
};

/// Takes a value, a NUL, and a text (or only a text): reads the text as each of the files, sets a key to the value and
/// removes it again, and makes the small files of names out of both.
pub fn wslconf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (value, text) = text.split_once('\0').unwrap_or(("a value", &text));

    edit(text, value, FileKind::WslConf, ["user", "default"], |t| {
        let (mut conf, warnings) = WslConf::parse(t);
        let _ = conf.clone().in_safe_mode();
        (conf.user.default.take(), conf, warnings)
    });
    let command = ["oobe", "command"];
    edit(text, value, FileKind::WslDistributionConf, command, |t| {
        let (mut conf, warnings) = DistributionConf::parse(t);
        (conf.oobe.command.take(), conf, warnings)
    });
    for kind in [FileKind::WslConfig, FileKind::HostelConf] {
        edit(text, value, kind, ["wsl2", "kernelCommandLine"], |t| {
            let (mut conf, warnings) = MachineConf::parse(t, kind);
            let host = hostel_model::Bytes::gib(8);
            assert!(conf.memory_for(host) <= host && conf.processors_for(4).0 <= 4);
            let (mode, notes) = conf.networking();
            let mirrored = NetworkingMode::Mirrored;
            assert!(mode != mirrored && mode != NetworkingMode::Bridged);
            assert!(conf.wsl2.networking_mode != mirrored || !notes.is_empty());
            assert!(!notes.concat().chars().any(char::is_control), "{notes:?}");
            let line = std::mem::take(&mut conf.wsl2.kernel_command_line);
            (Some(line).filter(|l| !l.is_empty()), conf, warnings)
        });
    }
    names(text, value);
}

/// Sets and removes a key; whatever else the text says stays as it is.
fn edit<C: PartialEq + std::fmt::Debug>(
    text: &str,
    value: &str,
    kind: FileKind,
    [section, key]: [&str; 2],
    parse: impl Fn(&str) -> (Option<String>, C, Vec<Warning>),
) {
    let (_, rest, warnings) = parse(text);
    let lines = text.split('\n').count() as u32;
    for warning in &warnings {
        assert!((1..=lines).contains(&warning.line), "{warning}");
        assert!(warning.column >= 1, "{warning}");
        let shown = warning.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }

    match set(text, kind, section, key, value) {
        Ok(with) => {
            let (got, others, _) = parse(&with);
            assert_eq!(got.unwrap_or_default(), value, "{with:?}");
            assert_eq!(others, rest, "{with:?}");
            assert_eq!(set(&with, kind, section, key, value).as_ref(), Ok(&with));
        }
        Err(EditError::Hidden(line)) => assert!((1..=lines).contains(&line)),
        Err(EditError::BadValue) => assert!(value.chars().any(char::is_control)),
        Err(error @ EditError::BadName(_)) => panic!("{error}"),
    }
    let without = remove(text, kind, section, key).expect("a good name");
    let (got, others, _) = parse(&without);
    assert_eq!((got, others), (None, rest), "{without:?}");
    // A name of the input's own making.
    let (section, key) = value.split_once('.').unwrap_or((value, "x"));
    if let Ok(with) = set(text, kind, section, key, "1") {
        remove(&with, kind, section, key).expect("the same name");
    }
}

/// The small texts that a distribution gets hold what they should and nothing that was smuggled in.
fn names(text: &str, value: &str) {
    let host = clean_hostname(value);
    assert!(
        (1..=64).contains(&host.len()) && clean_hostname(&host) == host,
        "{host:?}"
    );
    let Ok(entries) = host_entries(text) else {
        return;
    };
    assert_eq!(host_entries(&entries).as_ref(), Ok(&entries));
    let hosts = hosts_text(&host, "", &entries);
    assert!(
        hosts
            .lines()
            .filter(|l| l.starts_with("127.0.1.1\t"))
            .count()
            >= 1
    );

    let servers: Vec<IpAddr> = text
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    let search: Vec<String> = text.split(',').map(str::to_owned).collect();
    for line in resolv_conf_text(&servers, &search).lines() {
        let known = ["#", "nameserver ", "search "];
        assert!(known.iter().any(|k| line.starts_with(k)), "{line:?}");
    }
}
