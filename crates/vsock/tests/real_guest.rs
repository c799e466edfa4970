//! The device under a real QEMU and a real Linux driver. Needs QEMU, gcc with a static libc, and Debian's cloud kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hostel_kernel::{InstallOptions, Source, Store};
use hostel_model::Bytes;
use hostel_qemu::{
    Accel, BootFile, LaunchOptions, Machine, MachineConfig, VsockDevice, kernel_command_line,
    probe_qemu,
};
use hostel_testkit::{Need, require, skip};
use hostel_vsock::{Channel, ChannelKind, Connection, Device, Listener};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const TEST: &str = "a_linux_guest_talks_through_plug_pause_and_replug";

/// The module that the others are loaded for.
const DRIVER: &str = "vmw_vsock_virtio_transport";

/// Generous: a translated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

async fn within<T>(what: &str, machine: &Machine, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| {
            panic!(
                "no {what} in {PATIENCE:?}; the console said:\n{}",
                machine.console_tail(40)
            )
        })
}

/// Appends one file or directory to a newc archive.
fn cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let ino = archive.len() + 1;
    let head = format!(
        "070701{ino:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
        0,
        0,
        1,
        0,
        data.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0
    );
    for part in [head.as_bytes(), data] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

/// Builds a vmlinux and a boot image with the modules up to the driver; `None`, visibly, when something is missing.
fn boot_image(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    require(TEST, Need::Program("gcc"))?;
    let package = match hostel_testkit::kernel_deb() {
        Ok(package) => package,
        Err(error) => {
            skip(TEST, &format!("{error:#}"));
            return None;
        }
    };
    let store = Store::open(dir.join("kernels")).unwrap();
    let options = InstallOptions::default();
    let kernel = store
        .install(&Source::Debs(vec![package]), &options, &mut |_| ())
        .unwrap()
        .kernel;
    let init = dir.join("init");
    let gcc = Command::new("gcc")
        .args(["-static", "-O1", "-o"])
        .arg(&init)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.c"))
        .status();
    if !gcc.is_ok_and(|status| status.success()) {
        skip(TEST, "gcc cannot build a static program");
        return None;
    }
    let mut archive = Vec::new();
    cpio(
        &mut archive,
        "init",
        0o100_755,
        &fs_err::read(&init).unwrap(),
    );
    cpio(&mut archive, "m", 0o040_755, &[]);
    cpio(&mut archive, "dev", 0o040_755, &[]);
    for (i, module) in kernel.boot_modules().unwrap().into_iter().enumerate() {
        let name = format!("m/{i:02}.ko");
        cpio(
            &mut archive,
            &name,
            0o100_644,
            &fs_err::read(module.path).unwrap(),
        );
        if module.name == DRIVER {
            break;
        }
    }
    cpio(&mut archive, "TRAILER!!!", 0, &[]);
    let path = dir.join("initramfs");
    fs_err::write(&path, archive).unwrap();
    Some((kernel.vmlinux(), path))
}

async fn accept(machine: &Machine, listener: &mut Listener, what: u8) -> Connection {
    let mut connection = within("connection", machine, listener.accept())
        .await
        .unwrap();
    connection.write_all(&[what]).await.unwrap();
    connection
}

async fn echo(machine: &Machine, listener: &mut Listener, len: usize) {
    let (mut read, mut write) = tokio::io::split(accept(machine, listener, b'e').await);
    let data: Vec<u8> = (0..len).map(|i| (i * 31 / 7) as u8).collect();
    let mut got = Vec::new();
    let send = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), end) = within("echo", machine, async {
        tokio::join!(send, read.read_to_end(&mut got))
    })
    .await;
    end.unwrap();
    assert!(
        got == data,
        "{} of {} bytes came back",
        got.len(),
        data.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linux_guest_talks_through_plug_pause_and_replug() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = match probe_qemu(None, &std::env::var_os("PATH").unwrap_or_default()) {
        Ok(qemu) => qemu,
        Err(error) => return skip(TEST, &error),
    };
    let Some((vmlinux, initramfs)) = boot_image(dir.path()) else {
        return;
    };
    fs_err::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let channel = Channel::open(&ChannelKind::VhostUser {
        dir: dir.path().to_owned(),
    })
    .unwrap();
    let mut listener = channel.listen(1024).unwrap();
    let Device::VhostUser { socket } = channel.device() else {
        panic!("asked for our own device")
    };
    let device = VsockDevice::VhostUser { socket };

    let file = |path| BootFile {
        path,
        sha256: String::new(),
    };
    let mut config = MachineConfig::new(&qemu, Accel::Tcg, file(vmlinux), file(initramfs));
    config.memory = Bytes::mib(256);
    config.append = kernel_command_line(Accel::Tcg, "");
    let options = LaunchOptions {
        console_log: dir.path().join("console.log"),
        stderr_log: dir.path().join("qemu.log"),
        patience: PATIENCE,
        nic: Vec::new(),
    };
    let begun = Instant::now();
    let machine = Machine::launch(config, options).await.unwrap();
    machine.plug_vsock(&device).await.unwrap();
    machine.start().await.unwrap();
    echo(&machine, &mut listener, 10).await;
    eprintln!(
        "first echo {:.2} s after launch",
        begun.elapsed().as_secs_f64()
    );

    echo(&machine, &mut listener, 3 << 20).await;
    let begun = Instant::now();
    let mut source = accept(&machine, &mut listener, b'g').await;
    let mut got = Vec::new();
    within("32 MiB", &machine, source.read_to_end(&mut got))
        .await
        .unwrap();
    eprintln!(
        "guest to host {:.0} MiB/s",
        32.0 / begun.elapsed().as_secs_f64()
    );
    assert!(
        got.len() == 32 << 20
            && got
                .chunks(65536)
                .enumerate()
                .all(|(i, c)| c.iter().all(|b| *b == i as u8))
    );

    let begun = Instant::now();
    let mut sink = accept(&machine, &mut listener, b's').await;
    within("32 MiB", &machine, sink.write_all(&vec![1; 32 << 20]))
        .await
        .unwrap();
    sink.shutdown().await.unwrap();
    let count = within("count", &machine, sink.read_u64_le()).await.unwrap();
    eprintln!(
        "host to guest {:.0} MiB/s",
        32.0 / begun.elapsed().as_secs_f64()
    );
    assert_eq!(count, 32 << 20);

    // A paused VM keeps its connections.
    let mut held = accept(&machine, &mut listener, b'e').await;
    let mut buf = [0; 3];
    held.write_all(b"one").await.unwrap();
    within("echo", &machine, held.read_exact(&mut buf))
        .await
        .unwrap();
    machine.qmp().stop().await.unwrap();
    held.write_all(b"two").await.unwrap();
    machine.qmp().cont().await.unwrap();
    within("echo after the pause", &machine, held.read_exact(&mut buf))
        .await
        .unwrap();
    assert_eq!(&buf, b"two");

    // Unplugged, a connection ends with an error, and the listener is found again by the next plug.
    for _ in 0..3 {
        machine.unplug_vsock(PATIENCE).await.unwrap();
        let end = within("end", &machine, held.read_exact(&mut buf))
            .await
            .unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        machine.plug_vsock(&device).await.unwrap();
        echo(&machine, &mut listener, 100_000).await;
        held = accept(&machine, &mut listener, b'e').await;
        held.write_all(b"hey").await.unwrap();
        within("echo", &machine, held.read_exact(&mut buf))
            .await
            .unwrap();
    }
    drop(held);
    let mut last = accept(&machine, &mut listener, b'q').await;
    let end = within("end", &machine, last.read(&mut buf)).await;
    assert!(
        end.is_err(),
        "a VM that went away is not a proper end: {end:?}"
    );
    let reason = within("exit", &machine, machine.wait()).await;
    assert_eq!(
        reason.status.map(|s| s.to_string()).as_deref(),
        Some("exit code 0")
    );

    // Killed, it leaves a channel that serves the next machine; closed, it leaves no socket.
    channel.close();
    assert!(listener.accept().await.is_err());
    let mut left = fs_err::read_dir(dir.path()).unwrap().flatten();
    assert!(!left.any(|e| e.path().extension().is_some_and(|x| x == "sock")));
}
