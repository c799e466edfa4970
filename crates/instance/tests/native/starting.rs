//! Starts: what wsl.conf and /etc get, and failures that leave nothing.

use std::time::Duration;

use hostel_instance::{CommandEnd, EnvVar, LaunchError, Root, launch, wait_unmounted};
use hostel_testkit::skip;

use crate::fixture::{House, Test, cgroup_parent, mounts_below, output, run, shell};

pub(crate) const TESTS: &[Test] = &[
    ("etc_files_are_generated", etc_files),
    ("wsl_conf_takes_effect", wsl_conf),
    ("a_root_without_etc_or_shell_is_named", incomplete),
    ("a_failed_start_leaves_nothing", failed_start),
    ("a_start_again_after_a_crash_of_the_caller", start_again),
    ("a_block_device_is_mounted_and_let_go", block_device),
    ("a_damaged_block_device_is_told_apart", damaged_device),
    ("a_timeout_undoes_the_start", timeout),
];

fn etc_files() {
    let house = House::new();
    house.write("etc/resolv.conf", "nameserver 1.1.1.1\n");
    let launched = house.start("etc");
    assert_eq!(launched.os.id, "test");
    assert_eq!(launched.os.version, "7");
    assert_eq!(launched.os.pretty_name, "Test House 7");
    assert_eq!(
        (launched.hostname.as_str(), launched.default_user.as_str()),
        ("host-etc", "root")
    );
    let i = &launched.instance;
    assert_eq!(output(i, "cat /etc/hostname"), "host-etc");
    assert_eq!(
        output(i, "readlink /etc/resolv.conf"),
        "/mnt/wsl/resolv.conf"
    );
    let hosts = output(i, "cat /etc/hosts");
    assert!(
        hosts.contains("host-etc.localdomain") && hosts.contains("ip6-loopback"),
        "{hosts}"
    );
}

fn wsl_conf() {
    let house = House::new();
    house.write(
        "etc/wsl.conf",
        "[network]\nhostname=--Inn!\ngenerateHosts=false\ngenerateResolvConf=false\n[user]\ndefault=ada\n\
         [boot]\ncommand=echo $WSL_DISTRO_NAME > /var/booted\n[filesystem]\numask=027\n",
    );
    house.write("etc/hosts", "mine\n");
    house.write("etc/resolv.conf", "mine\n");
    let mut spec = house.spec("conf");
    spec.default_user = Some("root".to_owned());
    spec.environment = vec![EnvVar::new("HOUSE", "yes")];
    let launched = launch(&spec).unwrap();
    let i = &launched.instance;
    assert_eq!(
        (launched.hostname.as_str(), launched.default_user.as_str()),
        ("Inn", "ada")
    );
    assert_eq!(output(i, "cat /etc/hosts /etc/resolv.conf"), "mine\nmine");
    assert_eq!(
        output(i, "id -un; umask; echo $HOUSE; pwd"),
        "ada\n0027\nyes\n/home/ada"
    );
    let deadline = std::time::Instant::now() + crate::fixture::PATIENCE;
    let booted = house.root.join("var/booted");
    while fs_err::read_to_string(&booted).unwrap_or_default().trim() != "Name-conf" {
        assert!(
            std::time::Instant::now() < deadline,
            "the boot command did not run"
        );
        std::thread::yield_now();
    }
}

fn incomplete() {
    for (part, missing) in [("etc", "/etc"), ("bin", "/bin/sh")] {
        let house = House::new();
        fs_err::remove_dir_all(house.root.join(part)).unwrap();
        let error = launch(&house.spec("incomplete")).unwrap_err();
        assert!(matches!(error, LaunchError::Incomplete { .. }), "{error}");
        assert!(error.to_string().contains(missing), "{error}");
    }
    let house = House::new();
    let mut spec = house.spec("nothing");
    spec.root = Root::Directory(house.dir.path().join("not-there"));
    assert!(matches!(
        launch(&spec).unwrap_err(),
        LaunchError::RootMount { damaged: false, .. }
    ));
}

fn failed_start() {
    let house = House::new();
    // The mount point of /proc is a file: found out half-way through the mounts.
    fs_err::remove_dir_all(house.root.join("proc")).unwrap();
    house.write("proc", "");
    let error = launch(&house.spec("fails")).unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");
    assert_eq!(mounts_below(house.dir.path()), Vec::<String>::new());
    if let Some(parent) = cgroup_parent() {
        assert!(!parent.join("fails").exists());
    }
    no_process_of("fails");
    fs_err::remove_file(house.root.join("proc")).unwrap();
    assert_eq!(output(&house.start("fails").instance, "echo fine"), "fine");
}

/// Looks for processes that were started for a distribution of this id.
fn no_process_of(id: &str) {
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let cgroup = fs_err::read_to_string(path.join("cgroup")).unwrap_or_default();
        assert!(
            !cgroup.contains(&format!("hostel-test-{}/{id}/", std::process::id())),
            "{}",
            path.display()
        );
    }
}

fn start_again() {
    let house = House::new();
    let first = house.start("again");
    let pid = first.instance.init_pid();
    // A second start of the same id takes the place of what an earlier caller left.
    if cgroup_parent().is_none() {
        return skip(
            "a_start_again_after_a_crash_of_the_caller",
            "no cgroup2 here",
        );
    }
    let second = house.start("again");
    assert_ne!(second.instance.init_pid(), pid);
    assert!(
        first.instance.try_wait().is_some(),
        "the first one was killed"
    );
    assert_eq!(output(&second.instance, "echo second"), "second");
}

fn block_device() {
    let Some(disk) = Disk::new("a_block_device_is_mounted_and_let_go") else {
        return;
    };
    let house = House::new();
    let mut spec = house.spec("disk");
    spec.root = Root::BlockDevice {
        path: disk.device.clone().into(),
        fstype: "ext4".into(),
        options: "discard,errors=remount-ro,data=ordered".into(),
    };
    let launched = launch(&spec).unwrap();
    assert_eq!(
        output(&launched.instance, "echo kept > /var/kept; cat /var/kept"),
        "kept"
    );
    let _busy = launched
        .instance
        .exec(&shell("cd /var; exec sleep 1000"))
        .unwrap();
    assert_eq!(
        launched.instance.stop(Duration::from_secs(5)).warnings,
        Vec::<String>::new()
    );
    wait_unmounted(disk.device.as_ref(), Duration::from_secs(10)).unwrap();
    let again = launch(&spec).unwrap();
    assert_eq!(output(&again.instance, "cat /var/kept"), "kept");
    // Killed from outside, as by the out-of-memory killer.
    let pid = rustix::process::Pid::from_raw(again.instance.init_pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(
        !again.instance.stop(Duration::from_secs(5)).was_running
            || again.instance.try_wait().is_some()
    );
    wait_unmounted(disk.device.as_ref(), Duration::from_secs(10)).unwrap();
    // A disk that cannot be written: the distribution starts and says so (BOOT-15).
    command("blockdev", &["--setro", &disk.device]);
    let read_only = launch(&spec).unwrap();
    assert!(
        read_only.warnings.iter().any(|w| w.contains("read-only")),
        "{:?}",
        read_only.warnings
    );
    assert_eq!(
        run(&read_only.instance, &shell("touch /var/x")).end,
        CommandEnd::Exited(1)
    );
    read_only.instance.kill();
    command("blockdev", &["--setrw", &disk.device]);
}

fn damaged_device() {
    let Some(disk) = Disk::new("a_damaged_block_device_is_told_apart") else {
        return;
    };
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(&disk.device)
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(file.file(), &[0xff; 4096], 1024).unwrap();
    file.sync_all().unwrap();
    let house = House::new();
    let mut spec = house.spec("damaged");
    spec.root = Root::BlockDevice {
        path: disk.device.clone().into(),
        fstype: "ext4".into(),
        options: String::new(),
    };
    let error = launch(&spec).unwrap_err();
    assert!(
        matches!(error, LaunchError::RootMount { damaged: true, .. }),
        "{error}"
    );
    assert!(error.to_string().contains(&disk.device), "{error}");
}

fn timeout() {
    let house = House::new();
    let mut spec = house.spec("slow");
    spec.timeout = Duration::ZERO;
    let error = launch(&spec).unwrap_err();
    assert!(matches!(error, LaunchError::Timeout { .. }), "{error}");
    // In the middle of it: everything is mounted, a program of the distribution hangs.
    house.write("etc/fstab", "none /mnt tmpfs defaults 0 0\n");
    fs_err::remove_file(house.root.join("bin/mount")).unwrap();
    house.executable("bin/mount", "#!/bin/sh\nsleep 1000\n");
    spec.timeout = Duration::from_secs(2);
    let error = launch(&spec).unwrap_err();
    assert!(error.to_string().contains("fstab"), "{error}");
    assert_eq!(mounts_below(house.dir.path()), Vec::<String>::new());
    no_process_of("slow");
    house.executable("bin/mount", "#!/bin/sh\nexit 32\n");
    spec.timeout = crate::fixture::PATIENCE;
    let launched = launch(&spec).unwrap();
    assert!(
        launched.warnings[0].contains("exited with 32"),
        "{:?}",
        launched.warnings
    );
}

/// An ext4 file system with a busybox distribution on a loop device of its own.
struct Disk {
    device: String,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
        House::fill(&tree);
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .args([&tree, &image])
            .arg("64M")
            .output();
        if !made.is_ok_and(|m| m.status.success()) {
            skip(test, "mke2fs -d does not work here");
            return None;
        }
        let attached = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image)
            .output();
        match attached {
            Ok(output) if output.status.success() => {
                let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
                Some(Self { device, _dir: dir })
            }
            _ => {
                skip(test, "no loop device can be had");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        command("losetup", &["--detach", &self.device]);
    }
}

fn command(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program)
        .args(arguments)
        .status()
        .unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
