//! What the machine's file is read as.

use std::time::Duration;

use super::*;
use crate::{FileKind, Level, NetworkingMode};

fn conf(text: &str) -> (MachineConf, Vec<String>) {
    let (conf, warnings) = MachineConf::parse(text, FileKind::WslConfig);
    (conf, warnings.iter().map(ToString::to_string).collect())
}

#[test]
fn nothing_gives_the_defaults() {
    let (conf, warnings) = conf("");
    assert_eq!((conf.clone(), warnings), (MachineConf::default(), vec![]));
    assert_eq!(conf.wsl2.vm_idle_timeout, Some(Duration::from_secs(60)));
    assert_eq!(conf.wsl2.default_vhd_size, Bytes::gib(256));
}

#[test]
fn the_keys_we_act_on_are_read() {
    let (conf, warnings) = conf(
        "[wsl2]\nkernel=/boot/vmlinuz\nkernelModules=/lib/modules/6.1\nkernelCommandLine=\"quiet a=b # c\"\nmemory=4GB\n\
         processors=0x2\nnetworkingMode=NAT\nvmIdleTimeout=-1\nkernelBootTimeout=90000\ndistributionStartTimeout=0\n\
         defaultVhdSize=64GB\n[general]\ninstanceIdleTimeout=-1\ndistributionInstallPath=/srv/d\n[hostel]\naccel=TCG\n\
         debianMirror=http://mirror.example/debian\n",
    );
    assert_eq!(warnings, [""; 0]);
    assert_eq!(conf.wsl2.kernel_command_line, "quiet a=b # c");
    assert_eq!(
        (conf.wsl2.memory, conf.wsl2.processors),
        (Some(Bytes::gib(4)), Some(2))
    );
    assert_eq!(
        (
            conf.wsl2.vm_idle_timeout,
            conf.general.instance_idle_timeout
        ),
        (None, None)
    );
    assert_eq!(conf.wsl2.kernel_boot_timeout, Duration::from_secs(90));
    assert_eq!(conf.wsl2.default_vhd_size, Bytes::gib(64));
    assert_eq!(
        (conf.hostel.accel, conf.wsl2.networking_mode),
        (Accel::Tcg, NetworkingMode::Nat)
    );
}

#[test]
fn every_other_key_is_known_too() {
    let bools = "loadDefaultKernelModules localhostForwarding nestedVirtualization dhcp ipv6 dnsProxy dnsTunneling firewall autoProxy \
        gpuSupport guiApplications debugConsole earlyBootLogging hostFileSystemAccess virtio virtio9p virtiofs \
        hardwarePerformanceCounters safeMode telemetry isolateDistroCgroup";
    let mut text = "[wsl2]\n".to_owned();
    for key in bools.split_whitespace() {
        text.extend([key, "=1\n"]);
    }
    text += "loadKernelModules=a, b\nswap=0\nswapFile=/x\nvmSwitch=x\nmacAddress=5E-bb-f6-9e-ee-55\ndhcpTimeout=1\n\
        systemDistro=/x\ndebugConsoleLogFile=/x\nkernelDebugPort=1\nmountDeviceTimeout=1\ncrashDumpFolder=/x\nmaxCrashDumpCount=-1\n\
        [experimental]\nautoMemoryReclaim=GRADUAL\nsparseVhd=1\nbestEffortDnsParsing=1\ndnsTunnelingIpAddress=10.0.0.1\n\
        initialAutoProxyTimeout=1\nignoredPorts=1, 65535\nhostAddressLoopback=1\nswiotlb=64MB\nvirtioFsAggregateShares=0\nsetVersionDebug=1\n";
    let (conf, warnings) = conf(&text);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(conf.wsl2.load_kernel_modules, ["a", "b"]);
    assert_eq!(
        conf.wsl2.mac_address.unwrap().to_string(),
        "5e:bb:f6:9e:ee:55"
    );
    assert_eq!(conf.experimental.ignored_ports, [1, 65535]);
    assert_eq!(
        conf.experimental.auto_memory_reclaim,
        AutoMemoryReclaim::Gradual
    );
}

/// CNF-4, CNF-5.
#[test]
fn mistakes_are_skipped_and_told() {
    let (conf, warnings) = conf(
        "[wsl2]\nmemory=4gb\nswapFile=C:\\x\nprocessors=3\nprocessors=4\nkernelModules=/m\nkernelBootTimeout=-5\nmacAddress=1:2\n\
         [experimental]\nnetworkingMode=virtioproxy\nignoredPorts=80,x,0,443\ndnsTunnelingIpAddress=x\n[wsl2]\nnetworkingMode=nat\n",
    );
    assert_eq!((conf.wsl2.memory, conf.wsl2.processors), (None, Some(3)));
    assert_eq!(conf.wsl2.networking_mode, NetworkingMode::Consomme);
    assert_eq!(conf.experimental.ignored_ports, [80, 443]);
    assert!(!conf.wsl2.dns_tunneling);
    let lines: Vec<&str> = warnings
        .iter()
        .map(|w| w.split(':').next().unwrap())
        .collect();
    assert_eq!(
        lines,
        ["2", "3", "5", "6", "7", "8", "11", "11", "12", "14"],
        "{warnings:#?}"
    );
    assert!(warnings[9].contains("line 10"), "{}", warnings[9]);
    assert!(warnings[3].contains("needs `wsl2.kernel`"));
}

#[test]
fn in_our_own_file_problems_are_errors() {
    let text = "[hostel]\ncolour=blue\naccel=warp\n";
    let (_, ours) = MachineConf::parse(text, FileKind::HostelConf);
    assert!(ours.len() == 2 && ours.iter().all(|w| w.level == Level::Error));
    let (_, theirs) = MachineConf::parse(text, FileKind::WslConfig);
    assert!(theirs.iter().all(|w| w.level == Level::Warning));
}

#[test]
fn memory_and_processors_are_bounded() {
    let host = Bytes::gib(8);
    for (text, want) in [
        ("", 4096),
        ("memory=1MB", 256),
        ("memory=1TB", 8192),
        ("memory=1025MB", 1024),
        ("memory=3GB", 3072),
    ] {
        assert_eq!(
            conf(&format!("[wsl2]\n{text}\n"))
                .0
                .memory_for(host)
                .whole_mib(),
            want,
            "{text}"
        );
    }
    for (text, want) in [
        ("", (4, false)),
        ("processors=0", (4, false)),
        ("processors=-3", (4, false)),
        ("processors=2", (2, false)),
        ("processors=9", (4, true)),
    ] {
        assert_eq!(
            conf(&format!("[wsl2]\n{text}\n")).0.processors_for(4),
            want,
            "{text}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in "(\\[(wsl2|experimental|hostel)\\]\n|(memory|processors|macAddress|ignoredPorts|accel)=|\\PC{0,8}|\n){0,20}") {
        let (conf, _) = MachineConf::parse(&text, FileKind::WslConfig);
        let _ = (conf.memory_for(Bytes::gib(1)), conf.processors_for(2));
    }
}
