//! What a distribution has of its own, and what it shares.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use hostel_instance::{CommandEnd, DeviceTree, SharedBind, launch, namespaces};
use hostel_testkit::{Space, skip};

use crate::fixture::{House, Test, cgroup_parent, output, run, shell};

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_by_inode", namespaces_by_inode),
    ("two_distributions_at_once_see_only_themselves", two_at_once),
    ("own_mounts_and_devices", own_mounts_and_devices),
    ("the_kernels_devtmpfs_with_an_own_devpts", shared_devtmpfs),
    (
        "pid_1_blocks_no_signal_and_cannot_be_killed_from_inside",
        pid_1,
    ),
    ("sessions_sit_in_a_leaf_of_the_own_cgroup", cgroup),
    ("shared_directories_are_shared", shared_directories),
    (
        "a_network_of_its_own_is_seen_everywhere_inside",
        own_network,
    ),
    ("a_network_that_is_none_fails_the_start", no_network),
];

fn namespaces_by_inode() {
    let house = House::new();
    let launched = house.start("ns");
    let list = namespaces(launched.instance.init_pid(), std::process::id()).unwrap();
    for namespace in &list {
        let own = ["pid", "mnt", "ipc", "uts"].contains(&namespace.kind)
            || (namespace.kind == "cgroup" && cgroup_parent().is_some());
        assert_eq!(namespace.shared, !own, "{namespace:?}");
    }
    let inside = output(
        &launched.instance,
        "for n in pid mnt ipc uts net user; do readlink /proc/self/ns/$n; done",
    );
    for namespace in list
        .iter()
        .filter(|n| !["cgroup", "time"].contains(&n.kind))
    {
        assert!(
            inside.contains(&format!("{}:[{}]", namespace.kind, namespace.inode)),
            "{inside}"
        );
    }
}

fn two_at_once() {
    let (house_a, house_b) = (House::new(), House::new());
    let (a, b) = (house_a.start("a"), house_b.start("b"));
    let sleeper = a.instance.exec(&shell("exec sleep 1000")).unwrap();
    assert!(output(&a.instance, "ps").contains("sleep 1000"));
    let seen = output(&b.instance, "ps");
    assert!(
        !seen.contains("sleep 1000") && seen.lines().count() < 6,
        "{seen}"
    );
    assert_eq!(output(&a.instance, "hostname"), "host-a");
    assert_eq!(output(&b.instance, "hostname"), "host-b");
    assert_eq!(
        output(&b.instance, "echo $NAME $WSL_DISTRO_NAME"),
        "host-b Name-b"
    );
    output(&a.instance, "touch /run/mine /dev/shm/mine");
    assert_eq!(
        run(
            &b.instance,
            &shell("test -e /run/mine || test -e /dev/shm/mine")
        )
        .end,
        CommandEnd::Exited(1)
    );
    // System V message queues are numbered in each IPC namespace on its own.
    assert_eq!(output(&a.instance, "cat /proc/sysvipc/msg | wc -l"), "1");
    drop(sleeper);
    assert!(a.instance.stop(Duration::from_secs(5)).was_running);
    assert_eq!(output(&b.instance, "echo still here"), "still here");
}

fn own_mounts_and_devices() {
    let house = House::new();
    let launched = house.start("mounts");
    assert_eq!(launched.warnings, Vec::<String>::new());
    let i = &launched.instance;
    for path in [
        "/proc",
        "/sys",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/run",
        "/run/lock",
        "/run/user",
        "/run/shm",
    ] {
        let count = output(
            i,
            &format!("cut -d' ' -f2 /proc/mounts | grep -c '^{path}$'"),
        );
        assert_eq!(count, "1", "{path}");
    }
    let mounts = output(i, "cat /proc/mounts");
    assert!(
        mounts.contains(
            "devpts /dev/pts devpts rw,nosuid,noexec,noatime,gid=5,mode=620,ptmxmode=666"
        ),
        "{mounts}"
    );
    assert!(
        !mounts.contains(house.dir.path().to_str().unwrap()),
        "nothing of the old tree: {mounts}"
    );
    assert_eq!(output(i, "stat -c %a /tmp /run /init"), "1777\n755\n755");
    assert_eq!(run(i, &shell("touch /init")).end, CommandEnd::Exited(1));
    assert_eq!(
        output(i, "echo x > /dev/null; head -c 3 /dev/zero | wc -c"),
        "3"
    );
    let shared = output(
        i,
        "grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo | head -1",
    );
    assert!(shared.contains("shared:"), "{shared}");
}

fn shared_devtmpfs() {
    // The nodes are the machine's own, and their modes are put back.
    let _modes = ["/dev/fuse", "/dev/net/tun"].map(KeepMode::of);
    let _directory =
        (!std::path::Path::new("/dev/mqueue").exists()).then_some(MadeDirectory("/dev/mqueue"));
    let house = House::new();
    let mut spec = house.spec("devtmpfs");
    spec.devices = DeviceTree::SharedDevtmpfs;
    let launched = launch(&spec).unwrap();
    let types = output(&launched.instance, "cut -d' ' -f2,3 /proc/mounts");
    assert!(types.lines().any(|l| l == "/dev devtmpfs"), "{types}");
    let job = crate::fixture::on_tty(shell("tty; exec 3<>/dev/ptmx && ls /dev/pts"));
    let session = launched.instance.exec(&job).unwrap();
    // Counted in its own devpts (where the session before may still hold the first), and /dev/ptmx opens there too.
    let seen = crate::fixture::expect(&session.tty_master, "ptmx");
    assert!(
        seen.contains("/dev/pts/0") || seen.contains("/dev/pts/1"),
        "{seen}"
    );
}

/// Removes an empty directory at the end that a test made outside its own places.
struct MadeDirectory(&'static str);

impl Drop for MadeDirectory {
    fn drop(&mut self) {
        std::fs::remove_dir(self.0).unwrap();
    }
}

/// Puts a file's mode back at the end, if there is such a file.
struct KeepMode(&'static str, Option<std::fs::Permissions>);

impl KeepMode {
    fn of(path: &'static str) -> Self {
        Self(path, fs_err::metadata(path).ok().map(|m| m.permissions()))
    }
}

impl Drop for KeepMode {
    fn drop(&mut self) {
        if let Some(mode) = self.1.take() {
            fs_err::set_permissions(self.0, mode).unwrap();
        }
    }
}

fn pid_1() {
    let house = House::new();
    let launched = house.start("pid1");
    let i = &launched.instance;
    let status = output(i, "cat /proc/1/status");
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    output(i, "kill 1; kill -9 1; kill -HUP 1; true");
    assert_eq!(output(i, "echo alive"), "alive");
    let private: u64 = output(
        i,
        "grep -E '^Private_(Clean|Dirty)' /proc/1/smaps_rollup | tr -dc '0-9\\n'",
    )
    .lines()
    .map(|l| l.parse::<u64>().unwrap())
    .sum();
    assert!(
        (1..1024).contains(&private),
        "{private} KiB of private memory"
    );
    // An orphan of an orphan is reaped: nothing is left as a zombie.
    output(i, "(setsid sh -c 'true & true &' &)");
    assert!(!output(i, "ps").contains(" Z "), "a zombie");
}

fn cgroup() {
    let house = House::new();
    let launched = house.start("leaf");
    let Some(parent) = cgroup_parent() else {
        return skip(
            "sessions_sit_in_a_leaf_of_the_own_cgroup",
            "no cgroup2 here",
        );
    };
    assert_eq!(launched.instance.cgroup().unwrap(), parent.join("leaf"));
    let inside = output(
        &launched.instance,
        "grep ^0:: /proc/self/cgroup; ls -d /sys/fs/cgroup/init",
    );
    assert_eq!(inside, "0::/init\n/sys/fs/cgroup/init");
    output(&launched.instance, "mkdir -p /sys/fs/cgroup/docker/a/b");
    let _sleeper = launched.instance.exec(&shell("exec sleep 1000")).unwrap();
    assert_eq!(
        launched.instance.usage().processes,
        Some(3),
        "init, a session, its command"
    );
    let outcome = launched.instance.stop(Duration::from_secs(5));
    assert_eq!(outcome.warnings, Vec::<String>::new());
    assert!(!parent.join("leaf").exists());
}

fn shared_directories() {
    let house = House::new();
    let common = house.dir.path().join("common");
    fs_err::create_dir_all(&common).unwrap();
    let mut spec = house.spec("share");
    let bind = |target: &str, read_only| SharedBind {
        source: common.clone(),
        target: target.into(),
        read_only,
        required: true,
    };
    let missing = SharedBind {
        source: "/no/such".into(),
        target: "/gone".into(),
        read_only: true,
        required: false,
    };
    spec.shared = vec![
        bind("/mnt/wsl", false),
        bind("/lib/modules/6.0", true),
        missing,
    ];
    let launched = launch(&spec).unwrap();
    assert_eq!(launched.warnings.len(), 1, "{:?}", launched.warnings);
    output(&launched.instance, "echo hello > /mnt/wsl/file");
    assert_eq!(
        fs_err::read_to_string(common.join("file")).unwrap(),
        "hello\n"
    );
    let refused = run(&launched.instance, &shell("echo x > /lib/modules/6.0/file"));
    assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
    "share2".clone_into(&mut spec.id);
    spec.shared[2].required = true;
    let error = launch(&spec).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
}

fn own_network() {
    let Some(space) = Space::new("a_network_of_its_own_is_seen_everywhere_inside") else {
        return;
    };
    space
        .sh("ip link add hole type veth peer name inside")
        .unwrap();
    space.sh("sysctl -qw net.ipv4.ip_default_ttl=77").unwrap();
    let netns = space.netns();
    let house = House::new();
    let mut spec = house.spec("room");
    spec.network = Some(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into());
    let launched = launch(&spec).unwrap();
    let i = &launched.instance;
    // A process, a mount of sysfs, a view of /proc/sys, a session: all of them of that network.
    assert_eq!(output(i, "ls /sys/class/net"), "hole\ninside\nlo");
    assert_eq!(output(i, "cat /proc/sys/net/ipv4/ip_default_ttl"), "77");
    assert!(output(i, "cat /proc/net/dev").contains("inside:"));
    let list = namespaces(i.init_pid(), std::process::id()).unwrap();
    assert!(
        list.iter().any(|n| n.kind == "net" && !n.shared),
        "{list:?}"
    );
    let inode = list.iter().find(|n| n.kind == "net").unwrap().inode;
    let seen = space.run(|| fs_err::read_link("/proc/thread-self/ns/net").unwrap());
    assert_eq!(seen.to_str(), Some(format!("net:[{inode}]").as_str()));
    assert_eq!(
        i.stop(Duration::from_secs(5)).warnings,
        Vec::<String>::new()
    );
}

fn no_network() {
    let house = House::new();
    for (path, word) in [
        ("/no/such", "No such file"),
        ("/dev/null", "Invalid argument"),
    ] {
        let mut spec = house.spec("nonet");
        spec.network = Some(path.into());
        let error = launch(&spec).unwrap_err().to_string();
        assert!(
            error.contains("entering the network namespace") && error.contains(word),
            "{error}"
        );
    }
    assert!(cgroup_parent().is_none_or(|p| !p.join("nonet").exists()));
}
