//! The host's files change under a running resolver, in all the ways in which hosts do that.

use std::{net::IpAddr, path::Path, time::Duration};

use crate::common::{A, AAAA, FakeResolver, House, LONG, PTR, answer, query, rcode, records};
use fs_err::os::unix::fs::symlink;
use hostel_dns::{HostDns, Resolver, Settings};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Less than the pause after which the files are looked at without being told: what shows within it was told.
const TOLD: Duration = Duration::from_secs(4);

/// Waits until the host's servers are these.
async fn becomes(host: &mut watch::Receiver<HostDns>, servers: &[&str]) {
    let want: Vec<IpAddr> = servers.iter().map(|s| s.parse().unwrap()).collect();
    let found = timeout(TOLD, host.wait_for(|host| host.servers == want))
        .await
        .map(|found| found.is_ok());
    assert_eq!(found, Ok(true), "{servers:?}, but {:?}", *host.borrow());
}

fn server(address: &str) -> String {
    format!("nameserver {address}\n")
}

/// As editors and NetworkManager do it.
fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs_err::write(&new, text).unwrap();
    fs_err::rename(new, path).unwrap();
}

fn resolver(dir: &Path) -> Resolver {
    Resolver::new(Settings {
        resolv_conf: dir.join("etc/resolv.conf"),
        behind_stub: vec![dir.join("run/behind/resolv.conf")],
        hosts: dir.join("etc/hosts"),
        ..Settings::default()
    })
}

#[tokio::test]
async fn every_way_to_change_resolv_conf_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let run = dir.path().join("run");
    fs_err::create_dir_all(&etc).unwrap();
    fs_err::create_dir_all(&run).unwrap();
    let path = etc.join("resolv.conf");
    let resolver = resolver(dir.path());
    let mut host = resolver.host();
    assert_eq!(
        *host.borrow(),
        HostDns::default(),
        "a missing file is an empty one"
    );

    fs_err::write(&path, server("10.0.0.1")).unwrap();
    becomes(&mut host, &["10.0.0.1"]).await;
    // In place.
    fs_err::write(&path, server("10.0.0.2")).unwrap();
    becomes(&mut host, &["10.0.0.2"]).await;
    rename_over(&path, &server("10.0.0.3"));
    becomes(&mut host, &["10.0.0.3"]).await;
    // The new file is followed as the old one was.
    fs_err::write(&path, server("10.0.0.4")).unwrap();
    becomes(&mut host, &["10.0.0.4"]).await;

    // A link to what another program keeps elsewhere.
    let first = run.join("first/resolv.conf");
    let second = run.join("second/resolv.conf");
    for (file, address) in [(&first, "10.0.1.1"), (&second, "10.0.2.1")] {
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(file, server(address)).unwrap();
    }
    symlink("../run/first/resolv.conf", etc.join("link")).unwrap();
    fs_err::rename(etc.join("link"), &path).unwrap();
    becomes(&mut host, &["10.0.1.1"]).await;
    rename_over(&first, &server("10.0.1.2"));
    becomes(&mut host, &["10.0.1.2"]).await;
    fs_err::write(&first, server("10.0.1.3")).unwrap();
    becomes(&mut host, &["10.0.1.3"]).await;
    // The link is pointed elsewhere, and what it pointed to has no say any more.
    symlink(&second, etc.join("link")).unwrap();
    fs_err::rename(etc.join("link"), &path).unwrap();
    becomes(&mut host, &["10.0.2.1"]).await;
    fs_err::write(&first, server("10.0.1.4")).unwrap();
    fs_err::write(&second, server("10.0.2.2")).unwrap();
    becomes(&mut host, &["10.0.2.2"]).await;

    // A link to a link, a directory on the way that is a link, and one that is not there yet.
    symlink("first", run.join("current")).unwrap();
    symlink("current/resolv.conf", run.join("middle")).unwrap();
    symlink("../run/middle", etc.join("link")).unwrap();
    fs_err::rename(etc.join("link"), &path).unwrap();
    becomes(&mut host, &["10.0.1.4"]).await;
    symlink("second", run.join("link")).unwrap();
    fs_err::rename(run.join("link"), run.join("current")).unwrap();
    becomes(&mut host, &["10.0.2.2"]).await;
    symlink("../run/later/deep/resolv.conf", etc.join("link")).unwrap();
    fs_err::rename(etc.join("link"), &path).unwrap();
    becomes(&mut host, &[]).await;
    fs_err::create_dir_all(run.join("later/deep")).unwrap();
    fs_err::write(run.join("later/deep/resolv.conf"), server("10.0.3.1")).unwrap();
    becomes(&mut host, &["10.0.3.1"]).await;

    // A loop is no file, and a file in its place is one again.
    symlink("resolv.conf", etc.join("link")).unwrap();
    fs_err::rename(etc.join("link"), &path).unwrap();
    becomes(&mut host, &[]).await;
    rename_over(&path, &server("10.0.0.5"));
    becomes(&mut host, &["10.0.0.5"]).await;
    fs_err::remove_file(&path).unwrap();
    becomes(&mut host, &[]).await;
}

#[tokio::test]
async fn a_file_that_is_emptied_and_filled_is_never_seen_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etc/resolv.conf");
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, server("10.0.0.1")).unwrap();
    let resolver = resolver(dir.path());
    let mut host = resolver.host();
    becomes(&mut host, &["10.0.0.1"]).await;
    for number in 2..30 {
        let file = fs_err::File::create(&path).unwrap();
        tokio::task::yield_now().await;
        let address = format!("10.0.0.{number}");
        std::io::Write::write_all(&mut &file, server(&address).as_bytes()).unwrap();
        drop(file);
        let seen = timeout(
            TOLD,
            host.wait_for(|h| h.servers != [IpAddr::from([10, 0, 0, number - 1])]),
        )
        .await
        .expect("a change")
        .unwrap()
        .clone();
        assert_eq!(seen.servers, [IpAddr::from([10, 0, 0, number])]);
    }
}

/// DNS-2, DNS-4: what a guest may be told follows as well, with the servers behind a stub.
#[tokio::test]
async fn search_domains_and_servers_behind_a_stub_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(dir.path().join("etc")).unwrap();
    fs_err::create_dir_all(dir.path().join("run")).unwrap();
    let path = dir.path().join("etc/resolv.conf");
    fs_err::write(&path, "nameserver 127.0.0.53\nsearch a.example\n").unwrap();
    let resolver = resolver(dir.path());
    let mut host = resolver.host();
    assert_eq!(host.borrow().search, ["a.example"]);
    assert!(host.borrow().for_guest.is_empty());

    let behind = dir.path().join("run/behind");
    fs_err::create_dir(&behind).unwrap();
    rename_over(&behind.join("resolv.conf"), &server("192.0.2.53"));
    let told = timeout(
        TOLD,
        host.wait_for(|h| h.for_guest == [IpAddr::from([192, 0, 2, 53])]),
    );
    assert!(told.await.is_ok());
    // A VPN comes up.
    rename_over(
        &path,
        "nameserver 127.0.0.53\nsearch corp.example a.example\n",
    );
    let told = timeout(
        TOLD,
        host.wait_for(|h| h.search == ["corp.example", "a.example"]),
    );
    assert!(told.await.is_ok());
    // What changes nothing wakes nobody.
    host.mark_unchanged();
    rename_over(
        &path,
        "# again\nnameserver 127.0.0.53\nsearch corp.example a.example\n",
    );
    rename_over(&behind.join("resolv.conf"), &server("192.0.2.54"));
    let told = timeout(TOLD, host.changed());
    assert!(told.await.is_ok());
    assert_eq!(host.borrow().for_guest, [IpAddr::from([192, 0, 2, 54])]);
}

#[tokio::test]
async fn questions_go_where_the_file_says_now() {
    let old = FakeResolver::start(40, 0, |a| vec![answer(&a.message, &[10, 0, 0, 1])]).await;
    let new = FakeResolver::start(41, old.port, |a| vec![answer(&a.message, &[10, 0, 0, 2])]).await;
    let house = House::behind(&[&old], "");
    let asking = query(1, "x.example", A);
    assert_eq!(records(&house.ask(&asking, false).await), [[10, 0, 0, 1]]);
    let mut host = house.resolver.host();
    rename_over(&house.path("resolv.conf"), &server("127.0.0.41"));
    becomes(&mut host, &["127.0.0.41"]).await;
    assert_eq!(records(&house.ask(&asking, false).await), [[10, 0, 0, 2]]);
    assert_eq!((old.asked().len(), new.asked().len()), (1, 1));
}

#[tokio::test]
async fn the_hosts_own_names_are_known_and_followed() {
    let server = FakeResolver::start(42, 0, |a| vec![answer(&a.message, &[10, 0, 0, 1])]).await;
    let house = House::behind(&[&server], "");
    let listed = |name, kind| query(1, name, kind);
    let got = house.ask(&listed("LISTED.example", A), false).await;
    assert_eq!(records(&got), [[10, 1, 2, 3]]);
    assert_eq!(got[12..27], *b"\x06LISTED\x07example", "as it was asked");
    let got = house.ask(&listed("listed.example", AAAA), false).await;
    assert_eq!((rcode(&got), records(&got).len()), (0, 0));
    let got = house
        .ask(&listed("3.2.1.10.in-addr.arpa", PTR), false)
        .await;
    assert_eq!(records(&got), [b"\x06listed\x07example\0"]);
    assert!(server.asked().is_empty());
    // Other kinds of records are the resolver's business.
    house.ask(&listed("listed.example", 16), false).await;
    assert_eq!(server.asked().len(), 1);

    for (text, want) in [
        (
            "10.9.9.9 listed.example\n10.9.9.8 listed.example\n",
            vec![vec![10, 9, 9, 9], vec![10, 9, 9, 8]],
        ),
        ("# nothing\n", vec![vec![10, 0, 0, 1]]),
    ] {
        rename_over(&house.path("hosts"), text);
        let started = Instant::now();
        while records(&house.ask(&listed("listed.example", A), false).await) != want {
            assert!(started.elapsed() < TOLD, "{text}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_no_file_or_far_too_large_is_left_out() {
    let house = House::new(&server("10.0.0.1"), 53, |_| {});
    let mut host = house.resolver.host();
    becomes(&mut host, &["10.0.0.1"]).await;
    // Sparse, so it costs nothing.
    let large = house.path("large");
    fs_err::File::create(&large)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    fs_err::rename(&large, house.path("hosts")).unwrap();
    fs_err::remove_file(house.path("resolv.conf")).unwrap();
    symlink("/dev/zero", house.path("resolv.conf")).unwrap();
    becomes(&mut host, &[]).await;
    // Still alive.
    rename_over(&house.path("resolv.conf"), &server("10.0.0.2"));
    becomes(&mut host, &["10.0.0.2"]).await;
}

/// The files are followed no longer than somebody wants to know.
#[tokio::test]
async fn the_last_one_out_ends_the_following() {
    let house = House::new(&server("10.0.0.1"), 53, |_| {});
    let mut host = house.resolver.host();
    let other = house.resolver.clone();
    drop(house);
    assert!(host.borrow_and_update().servers.len() == 1);
    drop(other);
    let ended = timeout(LONG, async { while host.changed().await.is_ok() {} });
    assert!(ended.await.is_ok());
}
