//! The privileged helper: installed, run by a plain user of its group, and what it has then.

use std::{
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use hostel_bridge::{
    Client, Mode, RefusalCode, SpawnError,
    helper::{InstallError, install, installed, is_same, uninstall},
};
use hostel_sys::spawn::Stream;

use crate::world::*;

const GROUP: u32 = 4711;

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_hostel-net").into()
}

/// Installs the helper where everybody may look, and returns its path.
fn put(world: &World) -> PathBuf {
    let path = world.dir.path().join("libexec/hostel/hostel-net");
    install(&program(), &path, GROUP).unwrap();
    path
}

/// A script that runs the helper in the host's namespace as a plain user of a group.
fn script(world: &World, helper: &Path, group: u32) -> PathBuf {
    let usual = world.script(As::User { tun: Tun::Open }, helper);
    let plain = world.dir.path().join(format!("helper-{group}"));
    write_script(&plain, &format!("exec {} \"$@\"", helper.display()));
    let text = fs_err::read_to_string(&usual).unwrap();
    let text = text
        .replace(
            &*world.dir.path().join("plain").to_string_lossy(),
            &plain.to_string_lossy(),
        )
        .replace("--regid 4711", &format!("--regid {group}"));
    let path = world.dir.path().join(format!("start-{group}"));
    write_script(&path, &text);
    path
}

#[test]
fn a_plain_user_gets_the_hosts_network_through_the_helper() {
    let Some(world) = World::new("helper::a_plain_user_gets_the_hosts_network_through_the_helper")
    else {
        return;
    };
    let helper = put(&world);
    let found = installed(&helper).unwrap();
    assert_eq!((found.group, &found.problems), (GROUP, &Vec::new()));
    assert!(found.is_usable() && is_same(&program(), &helper).unwrap());

    let start = script(&world, &helper, GROUP);
    let client = Client::spawn(&start, &Mode::Host, Stream::Inherit, drop).unwrap();
    let status = fs_err::read_to_string(format!("/proc/{}/status", client.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    // net_bind_service and net_admin; nothing that it executed could have more.
    for (name, wanted) in [
        ("CapPrm", "0000000000001400"),
        ("CapEff", "0000000000001400"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Uid", "4711\t4711\t4711\t4711"),
    ] {
        assert_eq!(field(name), wanted, "{name}");
    }
    let open = fs_err::read_dir(format!("/proc/{}/fd", client.pid()))
        .unwrap()
        .count();
    assert!(open <= 8, "{open} descriptors: strays");

    let raised = client.up(wanted()).unwrap();
    let vm = world.vm("helper", &raised.bridge);
    talk(&vm, (SERVER, 80), &listen(&world.internet, (SERVER, 80)));
    talk(
        &world.host,
        (VM, 80),
        &listen(&vm, (Ipv4Addr::UNSPECIFIED, 80)),
    );
    client.listen_dns().unwrap();
    // Rules of others are read with the same rights.
    world
        .host
        .sh("nft 'add table ip other; \
             add chain ip other stop { type filter hook forward priority 0; policy drop; }'")
        .unwrap();
    let found = client.survey().unwrap().obstacles;
    assert_eq!((found.len(), found[0].chain.as_str()), (1, "stop"));
    client.close();
    assert!(world.is_clean());
    assert!(!world.forwards());
}

#[test]
fn the_helper_is_for_its_group_and_for_the_hosts_network_alone() {
    let Some(world) =
        World::new("helper::the_helper_is_for_its_group_and_for_the_hosts_network_alone")
    else {
        return;
    };
    let helper = put(&world);
    let other = script(&world, &helper, GROUP + 1);
    match Client::spawn(&other, &Mode::Host, Stream::Null, drop) {
        Err(SpawnError::Ended(_)) => {}
        outcome => panic!("{outcome:?}"),
    }
    let start = script(&world, &helper, GROUP);
    let namespace = Mode::UserNamespace { pasta: None };
    match Client::spawn(&start, &namespace, Stream::Null, drop) {
        Err(SpawnError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Denied),
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn a_helper_that_others_touched_is_not_used() {
    let Some(world) = World::new("helper::a_helper_that_others_touched_is_not_used") else {
        return;
    };
    let helper = put(&world);
    let problems = || installed(&helper).unwrap().problems;
    assert_eq!(problems(), Vec::<String>::new());

    let mode = |mode| fs_err::set_permissions(&helper, std::fs::Permissions::from_mode(mode));
    mode(0o755).unwrap();
    assert!(problems()[0].contains("mode"), "{:?}", problems());
    mode(0o750).unwrap();

    let directory = helper.parent().unwrap();
    fs_err::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(
        problems()[0].contains("others than root"),
        "{:?}",
        problems()
    );
    let refused = install(&program(), &helper, GROUP).unwrap_err();
    assert!(matches!(refused, InstallError::Unsafe(_)), "{refused}");
    fs_err::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();

    // A change of the owner takes the capabilities away.
    std::os::unix::fs::chown(&helper, Some(4711), None).unwrap();
    let found = problems().join("; ");
    assert!(
        found.contains("owner") && found.contains("no capabilities"),
        "{found}"
    );

    // Installing again puts all right, in one step, and leaves nothing else.
    install(&program(), &helper, GROUP).unwrap();
    assert_eq!(problems(), Vec::<String>::new());
    assert_eq!(fs_err::read_dir(directory).unwrap().count(), 1);
    uninstall(&helper).unwrap();
    uninstall(&helper).unwrap();
    assert_eq!(installed(&helper), None);
    assert!(!directory.exists());
}
