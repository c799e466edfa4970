//! Sessions and lifecycles against an agent in this process: ordinary, dying and hostile ones.
use std::{sync::atomic::Ordering, time::Duration};

use crate::fake::{House, SOON, claim, command, eventually, house, read_all, register};
use hostel_engine::{SessionEvents, Timeouts};
use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{self, StreamKind, session_event::Event};
use tokio::io::AsyncWriteExt as _;

async fn next(events: &mut SessionEvents) -> Result<Event, Failure> {
    let event = tokio::time::timeout(SOON, events.recv())
        .await
        .expect("an event in time")
        .expect("an event");
    event.map(|e| e.event.expect("a kind"))
}

async fn opened(events: &mut SessionEvents) -> v1::SessionOpened {
    match next(events).await.unwrap() {
        Event::Opened(opened) => opened,
        other => panic!("{other:?}"),
    }
}

/// Reads events until the session's end.
async fn end(events: &mut SessionEvents) -> (Result<v1::SessionExited, Failure>, usize) {
    let mut warnings = 0;
    loop {
        match next(events).await {
            Ok(Event::Exited(exited)) => return (Ok(exited), warnings),
            Ok(Event::Warning(_)) => warnings += 1,
            Ok(Event::Started(_)) => {}
            Ok(Event::Opened(other)) => panic!("opened twice: {other:?}"),
            Err(failure) => return (Err(failure), warnings),
        }
    }
}

fn state(house: &House, name: &str) -> String {
    house
        .engine
        .list(false)
        .into_iter()
        .find(|d| d.name == name)
        .unwrap()
        .state
}

fn one_distro() -> (House, String) {
    let house = house(Timeouts::default());
    let id = register(house.engine.registry(), "deb", 1);
    (house, id)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_the_end_is_told() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("DEB", "cat")).await.unwrap();
    let opened = opened(&mut events).await;
    let mut input = claim(&house.engine, &opened, StreamKind::Stdin);
    let output = claim(&house.engine, &opened, StreamKind::Stdout);
    let data: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        input.write_all(&sent).await.unwrap();
        input.shutdown().await.unwrap();
    });
    assert!(read_all(output).await == data, "what came back differs");
    writing.await.unwrap();
    let (exited, warnings) = end(&mut events).await;
    let exited = exited.unwrap();
    assert_eq!((exited.code, exited.totals[0].bytes), (3, 4_000_000));
    // Of the boot and of the distro: told once, to the one who caused them.
    assert_eq!(warnings, 2);
    assert_eq!(
        end(&mut house
            .engine
            .exec(command("", "true"))
            .await
            .map(|mut e| {
                e.try_recv().unwrap().unwrap();
                e
            })
            .unwrap())
        .await
        .1,
        0
    );
    assert_eq!(house.engine.list(false)[0].os_id, "debian");
    eventually("the session's end", || {
        house.engine.sessions_of(None).is_empty()
    })
    .await;
}

#[tokio::test]
async fn many_at_once_cause_one_boot_and_one_start() {
    let (house, _) = one_distro();
    let runs = (0..8).map(|_| async {
        let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
        opened(&mut events).await;
        end(&mut events).await.0.unwrap().code
    });
    assert_eq!(futures_util::future::join_all(runs).await, [0; 8]);
    assert_eq!(house.world.boots.load(Ordering::SeqCst), 1);
    assert_eq!(house.world.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_leaves_hangs_up_unless_it_detached() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("deb", "hang")).await.unwrap();
    opened(&mut events).await;
    drop(events);
    eventually("the hang-up", || {
        house.world.hangups.load(Ordering::SeqCst) == 1
    })
    .await;
    eventually("the session's end", || {
        house.engine.sessions_of(None).is_empty()
    })
    .await;

    let request = v1::ExecRequest {
        detach: true,
        ..command("deb", "hang")
    };
    let mut events = house.engine.exec(request).await.unwrap();
    let first = opened(&mut events).await;
    drop(events);
    eventually("the detachment", || {
        house.engine.sessions_of(None).iter().any(|s| !s.attached)
    })
    .await;
    let mut events = house.engine.attach(&first.session).await.unwrap();
    let again = opened(&mut events).await;
    assert_eq!(again.session, first.session);
    let output = claim(&house.engine, &again, StreamKind::Stdout);
    assert_eq!(read_all(output).await, b"attached");
    assert_eq!(house.world.hangups.load(Ordering::SeqCst), 1);
    house.world.hung_up.notify_waiters();
    eventually("the session's end", || {
        house.engine.sessions_of(None).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_failure_of_the_guest_reaches_the_client_with_its_code() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("deb", "missing")).await.unwrap();
    opened(&mut events).await;
    assert_eq!(
        end(&mut events).await.0.unwrap_err().code,
        ErrorCode::CommandNotFound
    );
    let failure = house
        .engine
        .exec(command("none", "true"))
        .await
        .unwrap_err();
    assert_eq!(failure.code, ErrorCode::DistroNotFound);
    assert!(!failure.hints.is_empty());
    let mut long = command("deb", "true");
    long.command.as_mut().unwrap().argv = vec![vec![b'x'; 600 << 10].into()];
    assert_eq!(
        house.engine.exec(long).await.unwrap_err().code,
        ErrorCode::InvalidArgument
    );
}

#[tokio::test]
async fn a_hostile_guest_cannot_flood_or_deceive() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("deb", "flood")).await.unwrap();
    opened(&mut events).await;
    let (exited, warnings) = end(&mut events).await;
    assert!(exited.is_ok() && warnings <= 40, "{warnings}");

    let mut events = house.engine.exec(command("deb", "huge")).await.unwrap();
    opened(&mut events).await;
    assert!(end(&mut events).await.0.is_err());

    let mut events = house.engine.exec(command("deb", "lie")).await.unwrap();
    opened(&mut events).await;
    assert_eq!(end(&mut events).await.0.unwrap().code, 0);

    let mut events = house.engine.exec(command("deb", "vanish")).await.unwrap();
    opened(&mut events).await;
    assert!(end(&mut events).await.0.is_err());

    // Connections with a wrong token, and more than may wait without one.
    let mut wrong = house.world.dial();
    wrong.write_all(&[7; 32]).await.unwrap();
    assert_eq!(read_all(wrong).await, b"");
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(house.world.dial());
        tokio::task::yield_now().await;
    }
    drop(silent);
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    assert!(end(&mut events).await.0.is_ok());
}

#[tokio::test]
async fn the_end_of_the_vm_is_told_with_its_reason_and_the_next_command_works() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("deb", "hang")).await.unwrap();
    let streams = opened(&mut events).await;
    let output = claim(&house.engine, &streams, StreamKind::Stdout);
    eventually("the start", || {
        house.engine.sessions_of(None).iter().any(|s| s.pid == 7)
    })
    .await;
    house.world.crash("QEMU was killed by signal 9");
    let failure = end(&mut events).await.0.unwrap_err();
    assert_eq!(failure.code, ErrorCode::VmCrashed);
    assert!(failure.message.contains("killed by signal 9"), "{failure}");
    assert_eq!(read_all(output).await, b"");
    assert_eq!(house.engine.vm_status().state, "crashed");
    assert_eq!(state(&house, "deb"), "stopped");
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    assert!(end(&mut events).await.0.is_ok());
    assert_eq!(house.world.boots.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_first_distro_starts_while_the_machine_settles_and_its_command_waits_for_both() {
    let (house, id) = one_distro();
    house.world.settles_late.store(true, Ordering::SeqCst);
    let engine = house.engine.clone();
    let exec = tokio::spawn(async move { engine.exec(command("deb", "true")).await });
    eventually("the start", || state(&house, "deb") == "running").await;
    let serial = id.parse::<hostel_model::DistroId>().unwrap().disk_serial();
    assert_eq!(*house.world.boot_disks.lock().unwrap(), [serial]);
    assert!(!exec.is_finished(), "there is no network yet");
    house.world.settle.notify_one();
    let mut events = exec.await.unwrap().unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
}

#[tokio::test]
async fn a_distro_whose_pid_1_ends_is_stopped_and_starts_again() {
    let (house, id) = one_distro();
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    house.world.pid1_ends(&id);
    eventually("the stop", || state(&house, "deb") == "stopped").await;
    assert_eq!(house.world.detached.lock().unwrap().len(), 1);
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    assert_eq!(house.world.starts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_command_that_meets_a_dead_pid_1_before_its_news_works() {
    let (house, id) = one_distro();
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    house.world.pid1_ends_unnoticed(&id);
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    assert_eq!(house.world.starts.load(Ordering::SeqCst), 2);
    assert_eq!(house.world.detached.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_disk_that_is_still_mounted_is_never_detached() {
    let (house, _) = one_distro();
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    house.world.stuck.store(true, Ordering::SeqCst);
    assert_eq!(
        house.engine.stop("deb", None).await.unwrap_err().code,
        ErrorCode::Busy
    );
    assert!(house.world.detached.lock().unwrap().is_empty());
    assert_eq!(state(&house, "deb"), "running");
    assert_eq!(
        house.engine.remove("deb").await.unwrap_err().code,
        ErrorCode::Busy
    );
    house.world.stuck.store(false, Ordering::SeqCst);
    assert_eq!(
        house.engine.stop("deb", None).await.unwrap().as_deref(),
        Some("deb")
    );
    assert_eq!(house.engine.stop("deb", None).await.unwrap(), None);
    assert_eq!(house.world.detached.lock().unwrap().len(), 1);
    house.engine.remove("deb").await.unwrap();
    assert!(house.engine.list(false).is_empty());
}

#[tokio::test]
async fn a_distro_that_does_not_start_leaves_the_others_alone() {
    let (house, _) = one_distro();
    register(house.engine.registry(), "other", 2);
    house.world.broken.store(true, Ordering::SeqCst);
    let failure = house.engine.exec(command("deb", "true")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DiskCorrupted);
    assert_eq!(state(&house, "deb"), "stopped");
    house.world.broken.store(false, Ordering::SeqCst);
    let mut events = house.engine.exec(command("other", "true")).await.unwrap();
    opened(&mut events).await;
    assert!(end(&mut events).await.0.is_ok());
    assert_eq!(house.world.boots.load(Ordering::SeqCst), 1);
}

/// A VM that hangs after its agent has dialled in is started once more, which is said; not for ever.
#[tokio::test]
async fn a_vm_that_hangs_before_it_greets_is_started_once_more() {
    let house = house(Timeouts {
        greeting: Duration::from_millis(200),
        ..Timeouts::default()
    });
    register(house.engine.registry(), "deb", 1);
    house.world.silent.store(2, Ordering::SeqCst);
    let failure = house.engine.exec(command("deb", "true")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::VmHung);
    assert_eq!(house.world.boots.load(Ordering::SeqCst), 2);
    house.world.silent.store(1, Ordering::SeqCst);
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    let (exited, warnings) = end(&mut events).await;
    exited.unwrap();
    assert_eq!(warnings, 4, "those of two boots and of settling, and why");
    assert_eq!(house.world.boots.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_is_idle_ends_by_itself_and_what_is_not_stays() {
    let timeouts = Timeouts {
        instance_idle: Some(Duration::from_millis(10)),
        vm_idle: Some(Duration::from_millis(10)),
        ..Timeouts::default()
    };
    let house = house(timeouts);
    register(house.engine.registry(), "deb", 1);
    house.world.processes.store(2, Ordering::SeqCst);
    let mut events = house.engine.exec(command("deb", "true")).await.unwrap();
    opened(&mut events).await;
    end(&mut events).await.0.unwrap();
    assert!(!house.engine.is_idle());
    // Services keep it.
    assert!(
        tokio::time::timeout(
            Duration::from_millis(1200),
            eventually("a stop", || state(&house, "deb") != "running")
        )
        .await
        .is_err()
    );
    house.world.processes.store(1, Ordering::SeqCst);
    eventually("the stop", || state(&house, "deb") == "stopped").await;
    eventually("the power-off", || house.engine.vm_status().state == "off").await;
    eventually("idleness", || house.engine.is_idle()).await;
}

#[tokio::test]
async fn shutdown_stops_everything_and_force_asks_nobody() {
    let (house, _) = one_distro();
    register(house.engine.registry(), "other", 2);
    let (sink, _events) = hostel_engine::TaskSink::channel();
    for name in ["deb", "other"] {
        assert_eq!(
            house.engine.start(name, &sink).await.unwrap().state,
            "running"
        );
    }
    assert_eq!(
        house.engine.shutdown(false).await.unwrap(),
        ["deb", "other"]
    );
    assert_eq!(house.engine.vm_status().state, "off");
    assert_eq!(house.world.detached.lock().unwrap().len(), 2);
    assert_eq!(house.engine.shutdown(false).await.unwrap(), [""; 0]);

    house.engine.start("deb", &sink).await.unwrap();
    house.world.stuck.store(true, Ordering::SeqCst);
    assert_eq!(house.engine.shutdown(true).await.unwrap(), ["deb"]);
    assert_eq!(
        (
            house.engine.vm_status().state.as_str(),
            state(&house, "deb").as_str()
        ),
        ("off", "stopped")
    );
    assert_eq!(house.engine.vm_status().last_end, "");
    house.engine.close(false).await;
}
