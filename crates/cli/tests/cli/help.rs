//! Help, man pages and completion scripts as they are printed.

use crate::support::{Fake, Script, texts};

/// Every page of help, compared with the file of the same name; `UPDATE_SNAPSHOTS=1` writes the files anew.
#[test]
fn help_is_as_recorded() {
    let fake = Fake::new(Script::default());
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    for page in [
        "",
        "exec",
        "import",
        "export",
        "install",
        "list",
        "start",
        "stop",
        "restart",
        "shutdown",
        "rm",
        "rename",
        "set-default",
        "status",
        "inspect",
        "manage",
        "net",
        "net show",
        "net list",
        "net adapters",
        "net backends",
        "net set",
        "net firewall",
        "net firewall list",
        "net firewall add",
        "net firewall rm",
        "net firewall clear",
        "net helper",
        "net helper install",
        "net helper uninstall",
        "net helper status",
        "ports",
        "ports rules",
        "ports set",
        "ports unset",
        "kernel",
        "kernel install",
        "kernel list",
        "kernel use",
        "sessions",
        "attach",
        "doctor",
        "logs",
        "debug-shell",
        "completions",
        "version",
    ] {
        let mut args: Vec<&str> = page.split_whitespace().collect();
        args.push("--help");
        let (code, out, err) = texts(&fake.run(&args));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{page}");
        let file = dir.join(format!("hostel {page}").trim().replace(' ', "-") + ".txt");
        if update {
            fs_err::write(&file, &out).unwrap();
        }
        let recorded = fs_err::read_to_string(&file).unwrap_or_default();
        assert!(
            recorded == out,
            "`hostel {page} --help` has changed; set UPDATE_SNAPSHOTS=1 to record it:\n{out}"
        );
    }
    assert_eq!(fake.calls("greet"), 0, "help needs no daemon");
}

#[test]
fn man_pages_and_scripts_are_made_from_the_same_definition() {
    let fake = Fake::new(Script::default());
    let dir = fake.dir.path().join("man");
    fs_err::create_dir_all(&dir).unwrap();
    let (code, _, err) = texts(&fake.run(&["__man", dir.to_str().unwrap()]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for page in ["hostel.1", "hostel-exec.1", "hostel-kernel-install.1"] {
        assert!(
            fs_err::read_to_string(dir.join(page))
                .unwrap()
                .contains(".TH"),
            "{page}"
        );
    }
    assert!(
        !dir.join("hostel-__man.1").exists(),
        "a hidden verb has no page"
    );
    for shell in ["bash", "elvish", "fish", "zsh"] {
        let (code, out, _) = texts(&fake.run(&["completions", shell]));
        assert!(
            code == Some(0) && out.contains("HOSTEL_COMPLETE"),
            "{shell}: {out}"
        );
    }
}

#[test]
fn names_complete_without_a_daemon() {
    let fake = Fake::new(Script::default());
    fs_err::create_dir_all(fake.dir.path().join("h/distros/1")).unwrap();
    fs_err::write(
        fake.dir.path().join("h/distros/1/distro.json"),
        r#"{"name":"trixie"}"#,
    )
    .unwrap();
    for (words, want) in [
        (&["start", "t"][..], "trixie"),
        (&["manage", "t"], "trixie"),
        (&["manage", "trixie", "--network", "i"], "isolated"),
        (&["ports", "set", "--distro", "t"], "trixie"),
        (&["ports", "set", "80", "s"], "same"),
        (&["ports", "unset", "-d", "t"], "trixie"),
        (&["net", "firewall", "add", "al"], "allow"),
        (&["net", "firewall", "add", "allow", "tc"], "tcp"),
        (&["net", "ad"], "adapters"),
    ] {
        let mut command = fake.command(&[&["--", "hostel"], words].concat());
        command
            .env("HOSTEL_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "false")
            .env("_CLAP_IFS", "\n");
        let (code, out, err) = texts(&crate::support::Running::start(&mut command).finish());
        assert_eq!((code, out.trim()), (Some(0), want), "{words:?} {err}");
    }
    assert_eq!(fake.calls("greet"), 0);
}
