//! What changes while the VM runs: the host, its resolvers, and what carries the network.

use std::sync::atomic::Ordering;

use hostel_engine::network::DnsMode;

use super::{running, running_with, wires};
use crate::fake::eventually;

/// DNS-2: the host's search domains are followed while the VM runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_hosts_resolv_conf_reaches_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    fs_err::write(&path, "nameserver 192.0.2.1\nsearch one.test\n").unwrap();
    let (house, _) = running_with(|h| {
        *h.world.net.resolv_conf.lock().unwrap() = Some(path.clone());
    })
    .await;
    let first = wires(&house).configured(1).await.network.unwrap();
    assert_eq!(
        (first.dns.as_slice(), first.dns_tunnel.as_str()),
        (&["10.255.255.254".to_owned()][..], "10.255.255.254")
    );
    assert_eq!(first.search, ["one.test"]);
    assert!(first.hide_rooms && first.generate_resolv_conf);
    fs_err::write(&path, "nameserver 192.0.2.2\nsearch two.test\n").unwrap();
    let second = wires(&house).configured(2).await.network.unwrap();
    assert_eq!(second.search, ["two.test"]);
    house.engine.close(false).await;
}

/// DNS-4.
#[tokio::test(flavor = "multi_thread")]
async fn without_tunnel_and_proxy_the_guest_is_told_the_hosts_servers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    fs_err::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
    let (house, _) = running_with(|h| {
        *h.world.net.resolv_conf.lock().unwrap() = Some(path.clone());
        h.world.net.settings.lock().unwrap().dns = DnsMode::Host;
    })
    .await;
    let told = wires(&house).configured(1).await.network.unwrap();
    assert_eq!(told.dns, ["192.0.2.1", "192.0.2.2"]);
    assert!(told.dns_tunnel.is_empty());
    house.engine.close(false).await;
}

/// The backend's process dies while it is in use: it is opened again, the card is put on it, the guest is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_is_opened_again() {
    let (house, _) = running().await;
    let net = &house.world.net;
    wires(&house).configured(1).await;
    net.refusals.store(2, Ordering::SeqCst);
    net.breaks();
    wires(&house).configured(2).await;
    assert_eq!(
        (
            net.opened.load(Ordering::SeqCst),
            net.replaced.load(Ordering::SeqCst)
        ),
        (2, 1)
    );
    assert!(net.closed.load(Ordering::SeqCst) >= 1);
    eventually("no trouble", || {
        futures_util::FutureExt::now_or_never(house.engine.network_status())
            .is_none_or(|s| s.backend == "slirp")
    })
    .await;
    // And once more.
    net.breaks();
    wires(&house).configured(3).await;
    // QEMU does not survive that what is behind its card goes first.
    assert_eq!(*net.unplugged.lock().unwrap(), [0, 1]);
    house.engine.close(false).await;
}

/// NAT-12: the guest is told of each change of the host that matters to it, and of nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_guest_follows_the_hosts_interfaces() {
    let (house, _) = running().await;
    let net = &house.world.net;
    wires(&house).configured(1).await;
    net.host_is(1420, false, &["192.0.2.5/32"]);
    let told = wires(&house).configured(2).await.network.unwrap();
    assert_eq!(
        (told.mtu, told.host_addresses),
        (1420, vec!["192.0.2.5/32".to_owned()])
    );
    assert_eq!(house.engine.network_status().await.mtu, 1420);
    // A storm: it is told how things are, not how they were in between.
    for n in 0..2000 {
        net.host_is(1400 - n % 2 * 20, false, &[]);
        tokio::task::yield_now().await;
    }
    net.host_is(1500, false, &[]);
    eventually("the last word", || {
        wires(&house)
            .configures
            .borrow()
            .last()
            .unwrap()
            .network
            .as_ref()
            .unwrap()
            .mtu
            == 1500
    })
    .await;
    assert!(
        wires(&house).configures.borrow().len() <= 6,
        "no storm of its own"
    );
    assert_eq!(net.replaced.load(Ordering::SeqCst), 0, "the card stays");
    house.engine.close(false).await;
}

/// `ipv6=auto`: IPv6 comes and goes with the host's, when that stays so.
#[tokio::test(flavor = "multi_thread")]
async fn ipv6_follows_the_host_when_nobody_has_set_it() {
    let (house, _) = running().await;
    let net = &house.world.net;
    let first = wires(&house).configured(1).await.network.unwrap();
    assert_eq!(first.ipv6_address, "");
    net.host_is(1500, true, &[]);
    let with = wires(&house).configured(2).await.network.unwrap();
    assert!(
        with.ipv6_address.starts_with("fd") && !with.ipv6_gateway.is_empty(),
        "{with:?}"
    );
    assert_ne!(house.engine.network_status().await.ipv6, "");
    // Gone for a moment, and really gone.
    net.host_is(1500, false, &[]);
    net.host_is(1500, true, &[]);
    net.host_is(1500, false, &[]);
    let without = wires(&house).configured(3).await.network.unwrap();
    assert_eq!(without.ipv6_address, "");
    let counts = (
        net.opened.load(Ordering::SeqCst),
        net.replaced.load(Ordering::SeqCst),
    );
    assert_eq!(counts, (3, 2));
    house.engine.close(false).await;
}

/// Then the network is as it was, and is left alone from then on.
#[tokio::test(flavor = "multi_thread")]
async fn ipv6_that_cannot_be_had_is_told_and_nothing_breaks() {
    let (house, _) = running().await;
    let net = &house.world.net;
    wires(&house).configured(1).await;
    net.refusals.store(1, Ordering::SeqCst);
    net.host_is(1500, true, &[]);
    let still = wires(&house).configured(2).await.network.unwrap();
    assert_eq!(still.ipv6_address, "");
    let warnings = house.engine.network().await.unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("without IPv6") && w.contains("no luck")),
        "{warnings:?}"
    );
    house.engine.close(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_that_somebody_set_stays() {
    let (house, _) =
        running_with(|h| h.world.net.settings.lock().unwrap().ipv6 = Some(false)).await;
    let net = &house.world.net;
    wires(&house).configured(1).await;
    net.host_is(1500, true, &[]);
    // Longer than one that follows would wait.
    let begun = std::time::Instant::now();
    eventually("four seconds", || {
        assert_eq!(net.opened.load(Ordering::SeqCst), 1);
        begun.elapsed() > std::time::Duration::from_secs(4)
    })
    .await;
    house.engine.close(false).await;
}
