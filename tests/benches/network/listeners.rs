//! How soon a listener is on the host, how soon it is gone, and what watching many costs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hostel_tests::{
    bench::{
        Row, median,
        peer::{Control, Server},
        rounds, seconds,
    },
    home::Home,
    run::{DEADLINE, pause, until},
};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use crate::site::{ALL, Site};

/// How many "many" are, and their first port.
const MANY: u16 = 2000;
const FIRST: u16 = 20_000;
/// How long the idle machine is looked at.
const IDLE: Duration = Duration::from_secs(20);
/// Between two orders: what is measured is a single event, not a storm of them.
const REST: Duration = Duration::from_millis(400);
/// Between two looks at a port.
const LOOK: Duration = Duration::from_micros(100);

/// A few listeners, then many.
pub(crate) fn seen_and_gone(site: &Site) -> Result<Vec<Row>> {
    let server = Server {
        address: site.address,
        first: ALL,
    };
    let mut control = server.control()?;
    let mut ports = 9000..;
    let few = samples(&mut control, &mut ports)?;
    let before = idle(&site.home)?;
    control.tell(&format!("listen,{FIRST},{MANY},0.0.0.0"))?;
    until("all listeners are on the host", DEADLINE, || {
        let listed = site.home.json(&["ports"]);
        let text = listed.to_string();
        let of_them = text.matches("\"forwarded\"").count();
        (of_them >= usize::from(MANY)).then_some(())
    })?;
    let many = samples(&mut control, &mut ports)?;
    let after = idle(&site.home)?;
    control.tell(&format!("close,{FIRST},{MANY}"))?;
    let limit = Duration::from_millis(20);
    let row = |what, few_took: Duration, many_took: Duration| Row {
        what,
        promise: "≤ 20 ms median",
        seen: format!(
            "{}; with {MANY} others {} (beside half a round trip to the machine, of {} and {})",
            seconds(few_took),
            seconds(many_took),
            seconds(few.trip),
            seconds(many.trip)
        ),
        kept: few_took <= limit && many_took <= limit,
    };
    Ok(vec![
        row("a new listener is on the host after", few.seen, many.seen),
        row("a closed one is gone after", few.gone, many.gone),
        Row {
            what: "2,000 idle listeners",
            promise: "≤ 1 % of a core",
            seen: format!(
                "agent {:.2} %, hosteld {:.2} %; without them {:.2} % and {:.2} %",
                after.0, after.1, before.0, before.1
            ),
            kept: after.0 + after.1 - before.0 - before.1 <= 1.0,
        },
    ])
}

/// Medians of what one listener needs.
struct Samples {
    /// Until it is seen.
    seen: Duration,
    /// Until it is gone.
    gone: Duration,
    /// What an order and its answer take, which do not count.
    trip: Duration,
}

/// Opens and closes some, one after the other.
fn samples(control: &mut Control, ports: &mut impl Iterator<Item = u16>) -> Result<Samples> {
    let mut trips = Vec::new();
    for _ in 0..15 {
        let start = Instant::now();
        control.tell("ping")?;
        trips.push(start.elapsed());
    }
    // The order needs one half of a round trip to arrive; the socket changes after that.
    let trip = median(trips);
    let way = trip / 2;
    let (mut seen, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..rounds() * 5 {
        let port = ports.next().context("ports are left")?;
        let place = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let opened = order(control, &format!("listen,{port},1,0.0.0.0"), || {
            TcpStream::connect(SocketAddr::V4(place)).is_ok()
        })?;
        seen.push(opened.saturating_sub(way));
        let closed = order(control, &format!("close,{port},1"), || is_free(place))?;
        gone.push(closed.saturating_sub(way));
    }
    Ok(Samples {
        seen: median(seen),
        gone: median(gone),
        trip,
    })
}

/// Gives an order; returns the time until its effect is seen.
fn order(control: &mut Control, order: &str, effect: impl Fn() -> bool) -> Result<Duration> {
    pause(REST);
    let start = Instant::now();
    control.send(order)?;
    while !effect() {
        if start.elapsed() > Duration::from_secs(30) {
            let said = control.answer().unwrap_or_else(|e| e.to_string());
            bail!("`{order}` has no effect on the host; the answer in the machine: {said}");
        }
        thread::park_timeout(LOOK);
    }
    let time = start.elapsed();
    control.answer()?;
    Ok(time)
}

/// Tells whether nobody listens at an address, without disturbing who does or wants to.
fn is_free(place: SocketAddrV4) -> bool {
    let Ok(socket) = socket(AddressFamily::INET, SocketType::STREAM, None) else {
        return false;
    };
    // Connections that are closing do not count then.
    sockopt::set_socket_reuseaddr(&socket, true).is_ok() && bind(&socket, &place).is_ok()
}

/// Returns what the guest's own processes and the daemon need of a processor, in per cent, while nothing happens.
fn idle(home: &Home) -> Result<(f64, f64)> {
    // One session for both looks, so that its start and end are not counted. The shell forks nothing that is counted.
    let line = format!(
        "look() {{ for p in /proc/[0-9]*; do read -r name < $p/comm; [ \"$name\" = init ] || continue; \
         for t in $p/task/*; do read -r time rest < $t/schedstat && echo $t $time; done; done; }}; \
         look; echo; sleep {}; look",
        IDLE.as_secs()
    );
    let daemon = home.daemon_pid().context("the daemon runs")?;
    // What was done before may have an echo.
    pause(Duration::from_secs(2));
    let machine = home.start(&["debug-shell", "--", "sh", "-c", &line]);
    let start = Instant::now();
    let before = of_process(daemon)?;
    let said = machine.wait(DEADLINE)?.ok();
    let of_daemon = (of_process(daemon)? - before) / start.elapsed().as_secs_f64();
    let (before, after) = said.split_once("\n\n").context("two looks")?;
    let (before, after) = (of_tasks(before), of_tasks(after));
    let spent: f64 = after
        .iter()
        .filter_map(|(task, time)| Some(time - before.get(task)?))
        .sum();
    let of_agent = spent / 1e9 / IDLE.as_secs_f64();
    Ok((of_agent * 100.0, of_daemon * 100.0))
}

/// Reads lines of a task and its processor time in nanoseconds.
fn of_tasks(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter_map(|line| {
            let (task, time) = line.split_once(' ')?;
            Some((task, time.parse().ok()?))
        })
        .collect()
}

/// Returns the processor time of a process of the host, in seconds.
fn of_process(pid: u32) -> Result<f64> {
    let mut all = 0.0;
    for task in fs_err::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs_err::read_to_string(task?.path().join("schedstat"))?;
        all += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(all / 1e9)
}

/// For those who name an address of the host's loopback.
pub(crate) fn answers(address: IpAddr, port: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let at = SocketAddr::new(address, port);
    let Ok(mut stream) = TcpStream::connect_timeout(&at, Duration::from_secs(2)) else {
        return false;
    };
    let mut start = [0; 5];
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .is_ok()
        && stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_exact(&mut start).is_ok()
        && start == *b"HTTP/"
}
