//! A real QEMU from launch to end, with a kernel of a few bytes: it writes a line to the serial port and halts or resets.
//! Needs the program only; without it each test says so and passes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use hostel_model::Bytes;
use hostel_qemu::{
    Accel, AttachDisk, BootFile, DiskError, DiskFile, DiskFormat, LaunchError, LaunchOptions,
    Machine, MachineConfig, Netdev, Nic, PlugError, UserIpv6, VsockDevice, probe_qemu,
};
use hostel_sys::spawn::Exit;
use serde_json::json;
use tempfile::TempDir;

/// What the kernel does after its line.
#[derive(Clone, Copy)]
enum Then {
    Halt,
    Reset,
    /// Lets every device go that shall be unplugged.
    Eject,
}

/// Makes a bzImage whose real-mode part does it all.
fn tiny_kernel(dir: &Path, line: &str, then: Then) -> PathBuf {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1; // setup_sects
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]); // jmp 0x268
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x0203u16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes());
    let mut code = vec![0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in line.bytes().chain(*b"\r\n") {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    match then {
        Then::Halt => code.extend([0xfa, 0xf4, 0xeb, 0xfd]), // cli; hlt; jmp back
        Then::Eject => code.extend([
            0x66, 0x31, 0xdb, // xor ebx, ebx
            0x66, 0x89, 0xd8, // next: mov eax, ebx
            0xba, 0xd0, 0x0c, 0x66, 0xef, // mov dx, 0xcd0; out dx, eax: the bus
            0xba, 0xc4, 0x0c, 0x66, 0xed, // mov dx, 0xcc4; in eax, dx: who shall go
            0x66, 0x85, 0xc0, 0x74, 0x05, // test eax, eax; jz over
            0xba, 0xc8, 0x0c, 0x66, 0xef, // mov dx, 0xcc8; out dx, eax: eject
            0xb9, 0xff, 0xff, 0xe2,
            0xfe, // over: mov cx, 0xffff; loop: without a pause QEMU comes to nothing else
            0x43, 0x83, 0xe3, 0x0f, 0xeb, 0xde, // inc bx; and bx, 15; jmp next
        ]),
        Then::Reset => code.extend([0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4]), // out 0xcf9, 6; hlt
    }
    image[0x268..0x268 + code.len()].copy_from_slice(&code);
    let path = dir.join("kernel");
    fs_err::write(&path, image).unwrap();
    path
}

struct Fixture {
    dir: TempDir,
    config: MachineConfig,
}

impl Fixture {
    /// Returns nothing, and says so, where QEMU is missing.
    fn new(test: &str, line: &str, then: Then) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let qemu = match probe_qemu(None, &path) {
            Ok(qemu) => qemu,
            Err(error) => {
                hostel_testkit::skip(test, &error);
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let initramfs = dir.path().join("initramfs");
        fs_err::write(&initramfs, [0; 512]).unwrap();
        let kernel = tiny_kernel(dir.path(), line, then);
        let file = |path| BootFile {
            path,
            sha256: String::new(),
        };
        let mut config = MachineConfig::new(&qemu, Accel::Tcg, file(kernel), file(initramfs));
        config.memory = Bytes::mib(128);
        Some(Self { dir, config })
    }

    fn options(&self) -> LaunchOptions {
        LaunchOptions {
            console_log: self.dir.path().join("console.log"),
            stderr_log: self.dir.path().join("qemu.log"),
            patience: Duration::from_secs(60),
            nic: Vec::new(),
        }
    }

    async fn launch(&self) -> Machine {
        Machine::launch(self.config.clone(), self.options())
            .await
            .unwrap()
    }

    fn disk(&self, serial: &str) -> AttachDisk {
        let path = self.dir.path().join(format!("{serial}.raw"));
        fs_err::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let base = DiskFile {
            path,
            format: DiskFormat::Raw,
        };
        AttachDisk {
            serial: serial.into(),
            base,
            overlay: None,
            read_only: false,
        }
    }
}

/// Has QEMU itself make an empty qcow2 of 1 MiB.
async fn make_overlay(machine: &Machine, path: PathBuf) -> PathBuf {
    let qmp = machine.qmp();
    let mut events = qmp.events();
    fs_err::File::create(&path).unwrap();
    qmp.blockdev_add(json!({ "driver": "file", "filename": path, "node-name": "new" }))
        .await
        .unwrap();
    let options = json!({ "driver": "qcow2", "file": "new", "size": 1 << 20 });
    qmp.execute(
        "blockdev-create",
        json!({ "job-id": "make", "options": options }),
    )
    .await
    .unwrap();
    let concluded = async { while events.recv().await.unwrap().data["status"] != "concluded" {} };
    within("overlay", concluded).await;
    qmp.execute("job-dismiss", json!({ "id": "make" }))
        .await
        .unwrap();
    qmp.blockdev_del("new").await.unwrap();
    path
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .unwrap_or_else(|_| panic!("no {what} in 120 s"))
}

/// Waits until a process that is no child of ours is gone.
fn wait_gone(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let timeout = rustix::event::Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap(),
        1,
        "process {pid:?} is still there"
    );
}

#[tokio::test]
async fn a_guest_that_resets_ends_qemu_and_its_console_is_quoted() {
    let Some(f) = Fixture::new("a_guest_that_resets", "hello from nowhere", Then::Reset) else {
        return;
    };
    let machine = f.launch().await;
    assert_eq!(
        machine.qmp().query_status().await.unwrap().status,
        "prelaunch"
    );
    assert!(machine.exit().borrow().is_none());
    machine.start().await.unwrap();
    let reason = within("end", machine.wait()).await;
    assert_eq!((reason.status, reason.asked), (Some(Exit::Code(0)), false));
    assert!(
        reason.console_tail.contains("hello from nowhere"),
        "{reason}"
    );
    assert!(
        fs_err::read_to_string(f.options().console_log)
            .unwrap()
            .contains("hello from nowhere")
    );
    assert!(
        machine.attach_disk(&f.disk("late")).await.is_err(),
        "QEMU is gone"
    );
}

#[tokio::test]
async fn a_machine_runs_gives_its_lifecycle_port_once_and_is_killed() {
    let Some(f) = Fixture::new("a_machine_runs", "up", Then::Halt) else {
        return;
    };
    let machine = f.launch().await;
    machine.start().await.unwrap();
    assert!(machine.qmp().query_status().await.unwrap().running);
    let (major, minor, _) = machine.qmp().query_version().await.unwrap();
    assert!((major, minor) >= (7, 2));
    assert!(machine.take_lifecycle().is_some());
    assert!(machine.take_lifecycle().is_none());
    assert!(machine.resident_bytes().unwrap() > Bytes::mib(1));
    assert_eq!(machine.memory().metadata().unwrap().len(), 128 << 20);
    assert_eq!(
        machine.balloon_actual().await.unwrap(),
        Some(Bytes::mib(128))
    );
    machine.kill().unwrap();
    let reason = within("end", machine.wait()).await;
    assert_eq!((reason.status, reason.asked), (Some(Exit::Signal(9)), true));
}

#[tokio::test]
async fn quitting_and_dropping_end_qemu() {
    let Some(f) = Fixture::new("quitting_and_dropping", "up", Then::Halt) else {
        return;
    };
    let machine = f.launch().await;
    machine.expect_exit();
    machine.qmp().quit().await.unwrap();
    let reason = within("end", machine.wait()).await;
    assert_eq!((reason.status, reason.asked), (Some(Exit::Code(0)), true));

    let machine = f.launch().await;
    let pid = machine.pid();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(machine);
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "dropping waits for the end"
    );
}

#[tokio::test]
async fn a_start_that_fails_tells_what_qemu_said() {
    let Some(mut f) = Fixture::new("a_start_that_fails", "up", Then::Halt) else {
        return;
    };
    f.config.kernel.path = f.dir.path().join("missing");
    let error = Machine::launch(f.config.clone(), f.options())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LaunchError::Ended(reason) if reason.stderr_tail.contains("missing")),
        "{error}"
    );
    f.config.qemu.path = "/nonexistent/qemu".into();
    let error = Machine::launch(f.config.clone(), f.options())
        .await
        .unwrap_err();
    assert!(matches!(error, LaunchError::Spawn { .. }), "{error}");
    f.config.memory = Bytes(12345);
    let error = Machine::launch(f.config.clone(), f.options())
        .await
        .unwrap_err();
    assert!(matches!(error, LaunchError::Config(_)), "{error}");
}

#[tokio::test]
async fn a_hundred_disks_come_and_go() {
    let Some(f) = Fixture::new("a_hundred_disks", "up", Then::Halt) else {
        return;
    };
    let machine = f.launch().await;
    machine.start().await.unwrap();
    for i in 0..100 {
        let lun = machine
            .attach_disk(&f.disk(&format!("disk-{i}")))
            .await
            .unwrap();
        assert_eq!(lun, i + 1);
    }
    assert!(matches!(
        machine.attach_disk(&f.disk("disk-5")).await,
        Err(DiskError::Attached(_))
    ));
    for i in (0..100).rev() {
        machine.detach_disk(&format!("disk-{i}")).await.unwrap();
    }
    machine.detach_disk("disk-5").await.unwrap();
    assert!(machine.disks().await.is_empty());
}

#[tokio::test]
async fn an_overlay_shares_its_base_and_a_failure_leaves_nothing_plugged() {
    let Some(f) = Fixture::new("an_overlay_shares_its_base", "up", Then::Halt) else {
        return;
    };
    let base = f.disk("base").base;
    let machine = f.launch().await;
    let a = make_overlay(&machine, f.dir.path().join("a.qcow2")).await;
    let b = make_overlay(&machine, f.dir.path().join("b.qcow2")).await;
    let disk = |serial: &str, overlay: PathBuf| AttachDisk {
        serial: serial.into(),
        base: base.clone(),
        overlay: Some(overlay),
        read_only: false,
    };
    machine.attach_disk(&disk("one", a.clone())).await.unwrap();
    machine.attach_disk(&disk("two", b)).await.unwrap();
    // The same overlay cannot be written twice, and trying leaves neither a node nor a unit taken.
    for _ in 0..2 {
        let error = machine
            .attach_disk(&disk("three", a.clone()))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, DiskError::Attach { path, .. } if *path == a),
            "{error:?}"
        );
    }
    machine.detach_disk("one").await.unwrap();
    assert_eq!(machine.attach_disk(&disk("three", a)).await.unwrap(), 1);
    assert_eq!(machine.disks().await.len(), 2);
}

#[tokio::test]
async fn a_device_that_cannot_be_plugged_leaves_its_port_free() {
    let Some(f) = Fixture::new("a_device_that_cannot_be_plugged", "up", Then::Halt) else {
        return;
    };
    let machine = f.launch().await;
    let device = VsockDevice::VhostUser {
        socket: f.dir.path().join("nobody"),
    };
    for _ in 0..8 {
        let error = machine.plug_vsock(&device).await.unwrap_err();
        assert!(matches!(error, PlugError::Plug { .. }), "{error:?}");
    }
    machine.unplug_vsock(Duration::from_secs(1)).await.unwrap();
    assert!(machine.qmp().query_status().await.is_ok());
}

/// Returns what QEMU says about its networks.
async fn networks(machine: &Machine) -> String {
    let arguments = json!({ "command-line": "info network" });
    let answer = machine
        .qmp()
        .execute("human-monitor-command", arguments)
        .await;
    answer.unwrap().as_str().unwrap().to_owned()
}

/// Waits until QEMU has closed its end.
async fn closed(mut ours: UnixStream) {
    ours.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let read = tokio::task::spawn_blocking(move || ours.read(&mut [0; 64]).unwrap());
    assert_eq!(read.await.unwrap(), 0);
}

#[tokio::test]
async fn the_network_card_is_replaced_while_the_guest_runs() {
    let Some(mut f) = Fixture::new("the_network_card_is_replaced", "up", Then::Eject) else {
        return;
    };
    let nic = |netdev| Nic {
        mac: "52:54:00:12:34:56".into(),
        netdev,
    };
    let user = Netdev::User {
        net: "172.19.128.0/20".into(),
        host: "172.19.128.1".into(),
        dhcpstart: "172.19.132.144".into(),
        dns: "172.19.128.53".into(),
        ipv6: Some(UserIpv6 {
            prefix: "fd00::".into(),
            host: "fd00::1".into(),
        }),
        filtered: true,
    };
    let patience = Duration::from_secs(60);
    let (ours, theirs) = UnixStream::pair().unwrap();
    f.config.nic = Some(nic(Netdev::Stream { filtered: false }));
    let mut options = f.options();
    options.nic.push(theirs.into());
    let machine = Machine::launch(f.config.clone(), options).await.unwrap();
    machine.start().await.unwrap();
    assert!(networks(&machine).await.contains("type=stream"));

    // Twice: a filter and its sockets come and go as well.
    for _ in 0..2 {
        let (out, out_qemu) = UnixStream::pair().unwrap();
        let (back, back_qemu) = UnixStream::pair().unwrap();
        machine
            .replace_nic(
                &nic(user.clone()),
                vec![out_qemu.into(), back_qemu.into()],
                patience,
            )
            .await
            .unwrap();
        let now = networks(&machine).await;
        assert!(
            now.contains("type=user") && now.contains("filter-redirector"),
            "{now}"
        );
        let (ours, theirs) = UnixStream::pair().unwrap();
        machine
            .replace_nic(
                &nic(Netdev::Stream { filtered: false }),
                vec![theirs.into()],
                patience,
            )
            .await
            .unwrap();
        closed(out).await;
        closed(back).await;
        drop(ours);
    }
    closed(ours).await;

    // What cannot be: no card is left, nor anything else, and the next one is plugged.
    let error = machine
        .replace_nic(&nic(Netdev::Tap), Vec::new(), patience)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        PlugError::Descriptors {
            wanted: 1,
            given: 0
        }
    ));
    assert!(networks(&machine).await.contains("type=stream"));
    let no_tap = fs_err::File::open("/dev/zero").unwrap();
    let error = machine
        .replace_nic(
            &nic(Netdev::Tap),
            vec![no_tap.into_parts().0.into()],
            patience,
        )
        .await
        .unwrap_err();
    assert!(matches!(error, PlugError::Plug { .. }), "{error:?}");
    assert_eq!(networks(&machine).await.trim(), "");
    let (_ours, theirs) = UnixStream::pair().unwrap();
    machine
        .replace_nic(
            &nic(Netdev::Stream { filtered: false }),
            vec![theirs.into()],
            patience,
        )
        .await
        .unwrap();
    assert!(networks(&machine).await.contains("type=stream"));
}

#[tokio::test]
async fn a_start_takes_the_descriptors_of_its_card() {
    let Some(mut f) = Fixture::new("a_start_takes_the_descriptors", "up", Then::Halt) else {
        return;
    };
    f.config.nic = Some(Nic {
        mac: "52:54:00:12:34:56".into(),
        netdev: Netdev::Stream { filtered: false },
    });
    let error = Machine::launch(f.config.clone(), f.options())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LaunchError::Descriptors {
                wanted: 1,
                given: 0
            }
        ),
        "{error:?}"
    );
}

/// Plays both parts: run again as a helper it launches a machine and is killed; QEMU must not outlive it.
#[test]
fn qemu_dies_with_its_killed_parent() {
    const HELPER: &str = "QEMU_TEST_HELPER";
    let Some(f) = Fixture::new("qemu_dies_with_its_killed_parent", "up", Then::Halt) else {
        return;
    };
    if std::env::var_os(HELPER).is_some() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let machine = f.launch().await;
            println!("\npid {}", machine.pid());
            machine.wait().await;
        });
        return;
    }
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "qemu_dies_with_its_killed_parent"])
        .env(HELPER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| {
            line.strip_prefix("pid ")
                .map(|pid| pid.parse::<u32>().unwrap())
        })
        .expect("the helper tells the pid");
    helper.kill().unwrap();
    assert_eq!(helper.wait().unwrap().signal(), Some(9));
    wait_gone(pid);
}
