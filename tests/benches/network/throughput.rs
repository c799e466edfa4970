//! Bytes between the machine and the host, its namespace, or the internet.

use anyhow::{Context as _, Result};
use hostel_tests::{
    bench::{
        Row, median,
        peer::{self, Kit, ROLE},
        rate, rounds,
    },
    world::{INTERNET, internet},
};

use crate::{hand::Hand, site::Site};

/// How long one measurement lasts.
const TURN: f64 = 4.0;

/// Our machine and one by hand, beside the same host.
pub(crate) fn beside_one_by_hand(site: &Site, kit: &Kit) -> Result<Vec<Row>> {
    let hand = Hand::like(site, kit)?;
    let verbs = ["download", "upload"];
    let both = in_turn(&verbs, &|verb| site.measure(verb, TURN), &|verb| {
        hand.measure(verb, TURN)
    })?;
    Ok(vec![row(
        "VM ↔ host, root",
        "≥ 0.95 x the same QEMU and tap by hand",
        &["VM → host", "host → VM"],
        &both,
        0.95,
    )])
}

/// The rootless backend and the root backend.
pub(crate) fn rootless_beside_root(root: &Site, rootless: &Site) -> Result<Vec<Row>> {
    let near = in_turn(
        &["download", "upload"],
        &|verb| rootless.measure(verb, TURN),
        &|verb| root.measure(verb, TURN),
    )?;
    let own = std::env::current_exe()?;
    let mut server = internet::command(own.to_str().context("a path in UTF-8")?);
    server.args([ROLE, "serve", INTERNET, "7000"]);
    let _server = hostel_tests::run::Running::start(&mut server, None)?;
    peer::wait_for(&[], INTERNET.parse()?, 7000)?;
    let download = |site: &Site| -> Result<f64> {
        Ok(site
            .tell(&format!("download,{INTERNET},7000,{TURN}"))?
            .parse()?)
    };
    let far = in_turn(&[""], &|_| download(rootless), &|_| download(root))?;
    Ok(vec![
        row(
            "VM ↔ namespace of the gateway, rootless",
            "≥ 0.9 x root",
            &["out of the VM", "into it"],
            &near,
            0.9,
        ),
        row(
            "download from the internet, rootless",
            "≥ 0.5 x root",
            &["into the VM"],
            &far,
            0.5,
        ),
    ])
}

/// Measures two things in turn, for each verb; returns both medians of each.
pub(crate) fn in_turn(
    verbs: &[&str],
    one: &dyn Fn(&str) -> Result<f64>,
    two: &dyn Fn(&str) -> Result<f64>,
) -> Result<Vec<(f64, f64)>> {
    let mut all = vec![(Vec::new(), Vec::new()); verbs.len()];
    for _ in 0..rounds() {
        for (verb, seen) in verbs.iter().zip(&mut all) {
            seen.0.push(one(verb)?);
            seen.1.push(two(verb)?);
        }
    }
    Ok(all
        .into_iter()
        .map(|(a, b)| (median(a), median(b)))
        .collect())
}

/// Writes rates side by side; the promise holds when all ratios are as large.
fn row(
    what: &'static str,
    promise: &'static str,
    names: &[&str],
    pairs: &[(f64, f64)],
    least: f64,
) -> Row {
    let seen: Vec<String> = names
        .iter()
        .zip(pairs)
        .map(|(name, (a, b))| format!("{name}: {} = {:.2} x {}", rate(*a), a / b, rate(*b)))
        .collect();
    Row {
        what,
        promise,
        seen: seen.join("; "),
        kept: pairs.iter().all(|(a, b)| a / b >= least),
    }
}
