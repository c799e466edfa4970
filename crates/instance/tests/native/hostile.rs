//! Images that mean harm, or are merely odd: nothing outside is read, written or covered.

use std::os::unix::fs::symlink;

use hostel_instance::{ExecError, launch};

use crate::fixture::{House, Test, expect, job, mounts_below, on_tty, output, shell};

pub(crate) const TESTS: &[Test] = &[
    ("symlinks_in_etc_do_not_lead_out", symlinks_in_etc),
    (
        "an_init_that_is_a_symlink_is_covered_not_followed",
        init_symlink,
    ),
    ("a_proc_that_is_a_symlink_stays_inside", proc_symlink),
    ("a_pts_that_is_a_file_does_not_matter", pts_file),
    ("files_that_never_end_are_not_waited_for", endless_files),
    ("mounts_inside_stay_inside", mounts_inside),
    ("a_devpts_that_was_covered_is_not_used", covered_devpts),
];

fn symlinks_in_etc() {
    let house = House::new();
    let outside = house.dir.path().join("outside");
    fs_err::write(&outside, "untouched").unwrap();
    for name in ["hosts", "hostname", "resolv.conf", "wsl.conf", "passwd"] {
        let path = house.root.join("etc").join(name);
        let _ = fs_err::remove_file(&path);
        symlink(&outside, path).unwrap();
    }
    let launched = house.start("links");
    assert_eq!(fs_err::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(launched.default_user, "root");
    assert_eq!(
        output(&launched.instance, "cat /etc/hostname"),
        "host-links"
    );
}

fn init_symlink() {
    let house = House::new();
    house.write("bin/real-init", "real");
    symlink("/bin/real-init", house.root.join("init")).unwrap();
    let launched = house.start("init");
    assert_eq!(launched.warnings, Vec::<String>::new());
    assert_eq!(output(&launched.instance, "cat /bin/real-init"), "real");
    let size = output(&launched.instance, "stat -c %s /init");
    assert_eq!(
        size,
        fs_err::metadata(std::env::current_exe().unwrap())
            .unwrap()
            .len()
            .to_string()
    );
    drop(launched);
    assert_eq!(
        fs_err::read_link(house.root.join("init")).unwrap().to_str(),
        Some("/bin/real-init")
    );
}

fn proc_symlink() {
    let house = House::new();
    let outside = house.dir.path().join("outside");
    fs_err::create_dir_all(&outside).unwrap();
    fs_err::remove_dir_all(house.root.join("proc")).unwrap();
    symlink(&outside, house.root.join("proc")).unwrap();
    let error = launch(&house.spec("proc")).unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");
    fs_err::remove_file(house.root.join("proc")).unwrap();
    symlink("../../../var", house.root.join("proc")).unwrap();
    let launched = house.start("proc");
    assert_eq!(output(&launched.instance, "cut -d' ' -f1 /var/1/stat"), "1");
    assert_eq!(mounts_below(house.dir.path()), Vec::<String>::new());
}

fn pts_file() {
    let house = House::new();
    house.write("dev/pts", "a file");
    house.write("dev/null", "another");
    let launched = house.start("pts");
    let session = launched.instance.exec(&on_tty(job(&["tty"]))).unwrap();
    expect(&session.tty_master, "/dev/pts/0");
}

fn endless_files() {
    let house = House::new();
    for name in [
        "wsl.conf",
        "passwd",
        "group",
        "os-release",
        "default/locale",
    ] {
        let path = house.root.join("etc").join(name);
        let _ = fs_err::remove_file(&path);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
    }
    symlink("/dev/zero", house.root.join("etc/locale.conf")).unwrap();
    let launched = house.start("endless");
    assert!(
        launched.warnings.iter().any(|w| w.contains("wsl.conf")),
        "{:?}",
        launched.warnings
    );
    assert_eq!(output(&launched.instance, "echo $HOME"), "/");
    let mut job = job(&["true"]);
    job.user = Some("ada".to_owned());
    assert!(matches!(
        launched.instance.exec(&job),
        Err(ExecError::UnknownUser(_))
    ));
}

fn mounts_inside() {
    let house = House::new();
    let launched = house.start("inside");
    output(
        &launched.instance,
        "mkdir /mnt/x; mount -t tmpfs none /mnt/x; touch /mnt/x/file",
    );
    assert_eq!(mounts_below(house.dir.path()), Vec::<String>::new());
    assert!(!house.root.join("mnt/x/file").exists());
    let error = launched.instance.exec(&shell("true")).map(drop);
    assert!(error.is_ok());
}

fn covered_devpts() {
    let house = House::new();
    let launched = house.start("covered");
    output(
        &launched.instance,
        "mount -t tmpfs none /dev/pts; mknod /dev/pts/ptmx p",
    );
    let session = launched
        .instance
        .exec(&on_tty(shell("echo it works")))
        .unwrap();
    expect(&session.tty_master, "it works");
}
