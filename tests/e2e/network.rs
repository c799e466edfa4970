//! Reaching outside through the network's first form.

use hostel_tests::world::{INTERNET, INTERNET_NAME, servers::PAGE};

use crate::shared::{DEBIAN_12, SMALL, home};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("tcp_reaches_the_internet", tcp_reaches_the_internet),
    ("udp_reaches_the_internet", udp_reaches_the_internet),
    ("names_resolve", names_resolve),
    (
        "the_distributions_share_one_loopback",
        the_distributions_share_one_loopback,
    ),
];

fn tcp_reaches_the_internet() {
    let page = home()
        .sh(SMALL, &format!("wget -q -O - http://{INTERNET}/"))
        .ok();
    assert_eq!(page, PAGE);
}

fn udp_reaches_the_internet() {
    let echo = home().run(&[
        "-d",
        DEBIAN_12,
        "-u",
        "root",
        "--",
        &format!(
            "bash -c 'exec 3<>/dev/udp/{INTERNET}/7; echo ping >&3; dd bs=100 count=1 status=none <&3'"
        ),
    ]);
    assert_eq!(echo.ok(), "ping");
}

fn names_resolve() {
    let page = home()
        .sh(SMALL, &format!("wget -q -O - http://{INTERNET_NAME}/"))
        .ok();
    assert_eq!(page, PAGE);
    let addresses = home()
        .sh(DEBIAN_12, &format!("getent ahostsv4 {INTERNET_NAME}"))
        .ok();
    assert!(addresses.starts_with(INTERNET), "{addresses}");
    home()
        .sh(DEBIAN_12, "getent ahostsv4 nowhere.example.test")
        .fails(2, &[]);
}

/// BOOT-12, REL-9: one port space.
fn the_distributions_share_one_loopback() {
    let home = home();
    let server = home.start(&["-d", SMALL, "--", "echo from-small | nc -l -p 7001"]);
    let heard = hostel_tests::run::until("the server answers", hostel_tests::run::DEADLINE, || {
        let said = home.run(&[
            "-d",
            DEBIAN_12,
            "--",
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/7001 && head -n 1 <&3'",
        ]);
        said.status.success().then(|| said.text())
    })
    .unwrap();
    assert_eq!(heard, "from-small");
    drop(server);
}
