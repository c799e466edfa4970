//! The main job: several distributions, one VM, one kernel, one address, isolated by namespaces only.

use crate::shared::{DEBIAN_12, DEBIAN_13, SMALL, home};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "one_kernel_and_different_releases",
        one_kernel_and_different_releases,
    ),
    (
        "the_same_eth0_address_and_route",
        the_same_eth0_address_and_route,
    ),
    (
        "each_sees_only_its_own_processes",
        each_sees_only_its_own_processes,
    ),
    (
        "namespaces_are_shared_or_own_as_designed",
        namespaces_are_shared_or_own_as_designed,
    ),
    (
        "a_mount_a_host_name_and_an_ipc_key_stay_inside",
        a_mount_a_host_name_and_an_ipc_key_stay_inside,
    ),
    (
        "dev_is_shared_and_pts_shm_run_are_not",
        dev_is_shared_and_pts_shm_run_are_not,
    ),
    (
        "init_is_the_same_read_only_binary_everywhere",
        init_is_the_same_read_only_binary_everywhere,
    ),
    ("mnt_wsl_is_shared_by_all", mnt_wsl_is_shared_by_all),
    ("modules_load_from_inside", modules_load_from_inside),
    (
        "each_has_a_cgroup_subtree_with_a_leaf",
        each_has_a_cgroup_subtree_with_a_leaf,
    ),
    (
        "hosts_hostname_and_resolv_conf_are_made",
        hosts_hostname_and_resolv_conf_are_made,
    ),
];

/// BOOT-13.
fn one_kernel_and_different_releases() {
    let home = home();
    let kernels: Vec<String> = [DEBIAN_12, DEBIAN_13, SMALL]
        .iter()
        .map(|d| home.sh(d, "uname -r").ok())
        .collect();
    assert!(kernels[0].contains("cloud-amd64"), "{kernels:?}");
    assert!(kernels.windows(2).all(|w| w[0] == w[1]), "{kernels:?}");
    let boots: Vec<String> = [DEBIAN_12, DEBIAN_13]
        .iter()
        .map(|d| home.sh(d, "cat /proc/sys/kernel/random/boot_id").ok())
        .collect();
    assert_eq!(boots[0], boots[1]);
    let release = |d| home.sh(d, ". /etc/os-release; echo $VERSION_ID").ok();
    assert_eq!(
        (release(DEBIAN_12).as_str(), release(DEBIAN_13).as_str()),
        ("12", "13")
    );
}

/// NET-1, NAT-11.
fn the_same_eth0_address_and_route() {
    let home = home();
    let address = |d| home.sh(d, "ip -4 -o addr show eth0").ok();
    let (a, b) = (address(DEBIAN_12), address(DEBIAN_13));
    let status = home.json(&["status"]);
    let network = |key: &str| status["network"][key].as_str().unwrap().to_owned();
    // The first choice, or the next one when another home of this world has that (NAT-3).
    let last = home.json(&["net", "show"])["last_host"]
        .as_str()
        .unwrap()
        .to_owned();
    let (front, end) = last.rsplit_once('.').unwrap();
    assert_eq!(end, "254");
    assert!(
        a.contains(&format!("inet {}/20 brd {front}.255", network("address"))),
        "{a}"
    );
    assert_eq!(a, b);
    let route = |d| home.sh(d, "ip route show default").ok();
    assert!(
        route(DEBIAN_12).contains(&format!("default via {} dev eth0", network("gateway"))),
        "{}",
        route(DEBIAN_12)
    );
    assert_eq!(route(DEBIAN_12), route(DEBIAN_13));
    let mac = |d| home.sh(d, "cat /sys/class/net/eth0/address").ok();
    assert_eq!(mac(DEBIAN_12), mac(DEBIAN_13));
    assert_eq!(
        mac(DEBIAN_12),
        home.json(&["status"])["network"]["mac"].as_str().unwrap()
    );
}

fn each_sees_only_its_own_processes() {
    let home = home();
    let sleeper = home.start(&["-d", DEBIAN_12, "--", "exec -a only-in-twelve sleep 300"]);
    hostel_tests::run::until("the process is there", hostel_tests::run::DEADLINE, || {
        home.sh(DEBIAN_12, "ps -eo args")
            .ok()
            .contains("only-in-twelve")
            .then_some(())
    })
    .unwrap();
    assert!(
        !home
            .sh(DEBIAN_13, "ps -eo args")
            .ok()
            .contains("only-in-twelve")
    );
    drop(sleeper);
    // PID 1 is the distribution's own init.
    assert!(home.sh(DEBIAN_13, "ps -o args= -p 1").ok().contains("init"));
}

/// Section 5.2 of the specification, with a cgroup namespace of its own as the design asks.
fn namespaces_are_shared_or_own_as_designed() {
    let home = home();
    let inode = |d: &str, kind: &str| home.sh(d, &format!("readlink /proc/self/ns/{kind}")).ok();
    for (kind, shared) in [
        ("pid", false),
        ("mnt", false),
        ("ipc", false),
        ("uts", false),
        ("cgroup", false),
        ("net", true),
        ("user", true),
        ("time", true),
    ] {
        let (a, b) = (inode(DEBIAN_12, kind), inode(DEBIAN_13, kind));
        assert_eq!(a == b, shared, "{kind}: {a} and {b}");
        // `inspect` tells the same by inode.
        let told = home.json(&["inspect", DEBIAN_12]);
        let entry = told["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["kind"] == kind);
        let entry = entry.unwrap_or_else(|| panic!("{kind} is not in {told}"));
        assert_eq!(entry["shared"], shared, "{kind}");
        assert!(
            a.contains(&format!("[{}]", entry["inode"])),
            "{kind}: {a} is not {entry}"
        );
    }
}

fn a_mount_a_host_name_and_an_ipc_key_stay_inside() {
    let home = home();
    home.sh(
        DEBIAN_12,
        "mkdir -p /opt/m && mount -t tmpfs only-here /opt/m",
    )
    .ok();
    assert!(
        !home
            .sh(DEBIAN_13, "cat /proc/mounts")
            .ok()
            .contains("only-here")
    );
    let before = home.sh(DEBIAN_13, "hostname").ok();
    home.sh(DEBIAN_12, "hostname changed-in-twelve").ok();
    assert_eq!(home.sh(DEBIAN_12, "hostname").ok(), "changed-in-twelve");
    assert_eq!(home.sh(DEBIAN_13, "hostname").ok(), before);
    home.sh(DEBIAN_12, "ipcmk -M 4096 >/dev/null").ok();
    let segments = |d| home.sh(d, "ipcs -m | grep -c 0x || true").ok();
    assert_eq!(
        (segments(DEBIAN_12).as_str(), segments(DEBIAN_13).as_str()),
        ("1", "0")
    );
}

/// Section 5.4 of the specification.
fn dev_is_shared_and_pts_shm_run_are_not() {
    let home = home();
    // The device tree is the VM's own in every distribution.
    let device = |d| home.sh(d, "stat -c %d /dev").ok();
    assert_eq!(device(DEBIAN_12), device(DEBIAN_13));
    for own in ["/dev/pts", "/dev/shm", "/run", "/dev/mqueue"] {
        let id = |d| home.sh(d, &format!("stat -c %d {own}")).ok();
        assert_ne!(id(DEBIAN_12), id(DEBIAN_13), "{own}");
        assert_ne!(
            id(DEBIAN_12),
            home.sh(DEBIAN_12, "stat -c %d /").ok(),
            "{own} is a mount"
        );
    }
    assert_eq!(home.sh(DEBIAN_13, "stat -c %a /tmp").ok(), "1777");
    assert_eq!(
        home.sh(
            DEBIAN_13,
            "echo x > /dev/null; stat -c %a /dev/fuse 2>/dev/null || echo 666"
        )
        .ok(),
        "666"
    );
}

/// BOOT-17.
fn init_is_the_same_read_only_binary_everywhere() {
    let home = home();
    for distro in [DEBIAN_12, DEBIAN_13] {
        assert_eq!(home.sh(distro, "stat -c %a /init").ok(), "755");
        home.sh(distro, "chmod 700 /init")
            .fails(1, &["Read-only file system"]);
        let mounts = home.sh(distro, "cat /proc/self/mounts").ok();
        assert!(
            mounts
                .lines()
                .any(|l| l.starts_with("rootfs /init rootfs ro,")),
            "{mounts}"
        );
    }
    let sum = |d| home.sh(d, "sha256sum < /init").ok();
    assert_eq!(sum(DEBIAN_12), sum(DEBIAN_13));
}

/// BOOT-7, BOOT-16.
fn mnt_wsl_is_shared_by_all() {
    let home = home();
    home.sh(DEBIAN_12, "echo hello > /mnt/wsl/from-twelve").ok();
    assert_eq!(home.sh(DEBIAN_13, "cat /mnt/wsl/from-twelve").ok(), "hello");
    // A mount made there by one appears in the other.
    home.sh(
        DEBIAN_12,
        "mkdir -p /mnt/wsl/m && mount -t tmpfs t /mnt/wsl/m && touch /mnt/wsl/m/x",
    )
    .ok();
    assert_eq!(home.sh(DEBIAN_13, "ls /mnt/wsl/m").ok(), "x");
    home.sh(DEBIAN_12, "umount /mnt/wsl/m").ok();
    assert_eq!(home.sh(DEBIAN_13, "ls /mnt/wsl/m").ok(), "");
}

fn modules_load_from_inside() {
    let home = home();
    // The kernel asks /init as modprobe by itself.
    home.sh(DEBIAN_12, "mkdir -p /tmp/l /tmp/u /tmp/w /tmp/o && mount -t overlay -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w o /tmp/o && umount /tmp/o").ok();
    assert!(
        home.sh(DEBIAN_12, "cat /proc/modules")
            .ok()
            .contains("overlay ")
    );
    // The modules of the running kernel lie where programs look for them, read-only.
    home.sh(DEBIAN_13, "test -e /lib/modules/$(uname -r)/modules.dep")
        .ok();
    home.sh(DEBIAN_13, "touch /lib/modules/$(uname -r)/x")
        .fails(1, &["Read-only file system"]);
}

fn each_has_a_cgroup_subtree_with_a_leaf() {
    let home = home();
    assert_eq!(home.sh(DEBIAN_12, "cat /proc/self/cgroup").ok(), "0::/init");
    assert_eq!(home.sh(DEBIAN_12, "cat /proc/1/cgroup").ok(), "0::/init");
    home.sh(
        DEBIAN_12,
        "grep -q memory /sys/fs/cgroup/cgroup.controllers",
    )
    .ok();
    // A cgroup made inside can have controllers, because nothing sits in the namespace's root.
    home.sh(
        DEBIAN_12,
        "cd /sys/fs/cgroup && echo +memory > cgroup.subtree_control && mkdir t && echo 64M > t/memory.max && cat t/memory.max && rmdir t",
    )
    .ok();
}

/// BOOT-28, BOOT-29, BOOT-31, DNS-6.
fn hosts_hostname_and_resolv_conf_are_made() {
    let home = home();
    let hosts = home.sh(DEBIAN_13, "cat /etc/hosts").ok();
    assert!(
        hosts.contains("127.0.0.1\tlocalhost") && hosts.contains("127.0.1.1\t"),
        "{hosts}"
    );
    assert_eq!(
        home.sh(DEBIAN_13, "cat /etc/hostname").ok(),
        home.sh(DEBIAN_13, "hostname").ok()
    );
    assert_eq!(
        home.sh(DEBIAN_13, "readlink /etc/resolv.conf").ok(),
        "/mnt/wsl/resolv.conf"
    );
    let resolv = home.sh(DEBIAN_13, "cat /etc/resolv.conf").ok();
    assert!(
        resolv.contains("generateResolvConf") && resolv.contains("nameserver "),
        "{resolv}"
    );
}
