//! Who reaches whom: small questions, each answered by a real connection.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use hostel_tests::{
    home::Home,
    run::{DEADLINE, Output, Running, until},
    world::{
        INTERNET, INTERNET_NAME,
        servers::{self, PAGE},
    },
};

/// How long a connection that is dropped on its way is waited for.
const GIVE_UP: Duration = Duration::from_secs(3);

/// Tells whether a page can be fetched inside a distribution.
pub(crate) fn guest_fetches(home: &Home, distro: &str, address: SocketAddr) -> bool {
    let line = format!("timeout 3 wget -q -O - http://{address}/");
    match answer(&home.sh(distro, &line)) {
        Some(text) => {
            assert_eq!(text, PAGE, "somebody else answers at {address}");
            true
        }
        None => false,
    }
}

/// Tells whether a distribution gets an answer by UDP: of the internet's own DNS server.
pub(crate) fn guest_asks_by_udp(home: &Home, distro: &str, server: Ipv4Addr) -> bool {
    let line = format!("timeout 8 nslookup {INTERNET_NAME} {server} 2>/dev/null");
    answer(&home.sh(distro, &line)).is_some_and(|t| t.contains(INTERNET))
}

/// Tells whether a distribution gets an answer to a ping.
pub(crate) fn guest_pings(home: &Home, distro: &str, address: IpAddr) -> bool {
    let line = format!("ping -c 1 -W 3 {address} >/dev/null && echo yes");
    answer(&home.sh(distro, &line)).is_some()
}

/// Starts a web server inside a distribution that answers every request with the distribution's own name. It ends with
/// what is returned: a shell takes the hang-up, which to the server itself means to read its configuration again.
pub(crate) fn serve_in_guest(home: &Home, distro: &str, address: &str, port: u16) -> Running {
    let line = format!(
        "mkdir -p /tmp/www && echo {distro} >/tmp/www/index.html && \
         {{ httpd -f -p {address}:{port} -h /tmp/www & trap 'kill $!; exit' HUP; wait; }}"
    );
    let server = home.start(&["-d", distro, "--", &line]);
    let local = if address.starts_with('[') {
        "[::1]"
    } else if address == "0.0.0.0" {
        "127.0.0.1"
    } else {
        address
    };
    let ready = format!("timeout 3 wget -q -O - http://{local}:{port}/");
    until("the server in the guest answers", DEADLINE, || {
        (home.sh(distro, &ready).text() == distro).then_some(())
    })
    .unwrap();
    server
}

/// Tells which distribution's server answers a process of the host, if any.
pub(crate) fn host_fetches(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, GIVE_UP).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.rsplit("\r\n\r\n").next()?.trim().to_owned())
}

/// Tells whether a machine on the internet can open a connection.
pub(crate) fn stranger_connects(address: SocketAddr) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
    let mut command: Command = hostel_tests::world::internet::command("timeout");
    command.args(["3", "bash", "-c", &script]);
    Running::start(&mut command, None)
        .and_then(|r| r.wait(DEADLINE))
        .unwrap()
        .status
        .success()
}

/// Starts a web server on the host that answers with [`PAGE`]; returns its port. It lives as long as the test program.
pub(crate) fn serve_on_host(address: IpAddr) -> u16 {
    servers::listen(SocketAddr::new(address, 0), servers::http)
        .unwrap()
        .port()
}

/// Returns the address of the made-up internet.
pub(crate) fn internet() -> Ipv4Addr {
    INTERNET.parse().unwrap()
}

/// Returns what a command printed when it succeeded and printed something.
///
/// # Panics
///
/// When Hostel itself failed: then the question was not asked.
#[track_caller]
fn answer(output: &Output) -> Option<String> {
    assert_ne!(output.code(), 125, "{}", output.stderr);
    let text = output.text();
    (output.status.success() && !text.is_empty()).then_some(text)
}
