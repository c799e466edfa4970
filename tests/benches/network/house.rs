//! Twenty distributions with networks of their own, started together.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hostel_tests::{
    bench::{Row, median, rounds, seconds},
    home::Home,
    run::{DEADLINE, host, until},
};

use crate::listeners::answers;

const ROOMS: usize = 20;
const PORT: u16 = 3000;

/// All start at once, with the machine off, and each serves the same port.
pub(crate) fn full() -> Result<Vec<Row>> {
    let home = Home::with_kernel()?;
    let archive = home.scratch("serving.tar");
    fs_err::copy(hostel_testkit::busybox_tar()?, &archive)?;
    let added = home.scratch("added");
    fs_err::create_dir_all(added.join("etc"))?;
    fs_err::write(
        added.join("etc/wsl.conf"),
        format!("[boot]\ncommand = httpd -p {PORT} -h /etc\n"),
    )?;
    let words = [
        OsStr::new("-r"),
        "-f".as_ref(),
        archive.as_ref(),
        "-C".as_ref(),
    ];
    let words = [&words[..], &[added.as_os_str(), "etc/wsl.conf".as_ref()]].concat();
    host("tar", &words)?.ok();
    let names: Vec<String> = (1..=ROOMS).map(|n| format!("room{n:02}")).collect();
    for name in &names {
        home.import(name, &archive);
        home.run(&["manage", name, "--network", "own"]).ok();
    }
    let (mut started, mut answered, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds().min(3) {
        home.run(&["shutdown"]).ok();
        let (start, all) = together(&home, &names)?;
        started.push(start);
        answered.push(all);
        for name in &names {
            home.run(&["stop", name]).ok();
        }
        again.push(together(&home, &names)?.1);
    }
    home.run(&["shutdown"]).ok();
    let (started, answered, again) = (median(started), median(answered), median(again));
    Ok(vec![Row {
        what: "20 distributions with own networks, started together, all answer on :3000 at their address and 127.x",
        promise: "≤ 20 s under TCG",
        seen: format!(
            "{} with the VM off (started after {}), {} with it on",
            seconds(answered),
            seconds(started),
            seconds(again),
        ),
        kept: answered <= Duration::from_secs(20),
    }])
}

/// Starts all; returns when the last was started, and when the last answered at both addresses.
fn together(home: &Home, names: &[String]) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let starting: Vec<_> = names.iter().map(|n| home.start(&["start", n])).collect();
    for one in starting {
        one.wait(DEADLINE)?.ok();
    }
    let started = start.elapsed();
    let net = home.json(&["net", "show"]);
    let guests = net["guests"].as_array().context("guests")?;
    let mut waiting: Vec<IpAddr> = Vec::new();
    for name in names {
        let guest = guests.iter().find(|g| g["distro"] == name.as_str());
        let address = guest.and_then(|g| g["address"].as_str());
        let address: Ipv4Addr = address.context("it has an address")?.parse()?;
        let [_, b, c, d] = address.octets();
        waiting.extend([address.into(), IpAddr::from([127, b, c, d])]);
    }
    until("all answer", DEADLINE, || {
        waiting.retain(|address| !answers(*address, PORT));
        waiting.is_empty().then_some(())
    })?;
    Ok((started, start.elapsed()))
}
