//! Ranks as threads: what they do together, and what they are told when one of them is gone.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tailor_domain::ErrorCode;
use tailor_torch::{Error, Meeting, ProcessGroup};
use tch::{Device, Kind, Tensor};

const PATIENCE: Duration = Duration::from_secs(30);
/// For a rank that never comes.
const SHORT: Duration = Duration::from_secs(2);

/// Runs `work` as each of `world` ranks, each on a loopback address of its own; what each returned, by rank.
fn among<T: Send>(world: u32, timeout: Duration, work: impl Fn(&Meeting, u32) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::scope(|scope| {
        let mut listener = Some(listener);
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let (own, work) = (listener.take(), &work);
                scope.spawn(move || {
                    let meeting = match own {
                        Some(listener) => Meeting::host(listener, timeout),
                        None => Meeting::join(address, timeout),
                    };
                    work(&meeting.expect("a meeting"), rank)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    })
}

fn own(rank: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + rank as u8))
}

fn connect(meeting: &Meeting, rank: u32, world: u32) -> ProcessGroup {
    ProcessGroup::open(meeting, own(rank), rank, world, PATIENCE).expect("connected")
}

fn assert_ranks<T: std::fmt::Debug>(outcome: Result<T, Error>, words: &[&str]) {
    let error = outcome.expect_err("a rank is gone");
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert!(words.iter().all(|word| error.to_string().contains(word)), "{words:?} in {error}");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

#[test]
fn three_ranks_add_up_agree_and_follow_the_first() {
    let outcomes = among(3, PATIENCE, |meeting, rank| {
        let group = connect(meeting, rank, 3);
        let options = (Kind::Float, Device::Cpu);
        let (row, square) = (Tensor::full([5], f64::from(rank), options), Tensor::full([2, 2], 10.0, options));
        // A view with gaps, as a gradient may be one.
        let gaps = Tensor::arange(6, options).view([2, 3]).tr() * f64::from(rank + 1);
        group.all_reduce(&[&row, &square, &gaps]).expect("added up");
        assert_eq!((row, square), (Tensor::full([5], 3.0, options), Tensor::full([2, 2], 30.0, options)));
        assert_eq!(gaps, Tensor::arange(6, options).view([2, 3]).tr() * 6.0);
        assert_eq!(group.sum(&[0.1 * f64::from(rank), 1.0]).expect("sums")[1], 3.0);
        assert_eq!(group.least(f64::from(7 - rank)).expect("least"), 5.0);
        let mine = Tensor::full([4], f64::from(rank), options);
        group.broadcast(&mine, 2).expect("told");
        assert_eq!(mine, Tensor::full([4], 2.0, options));
        let agrees = group.agrees(format!("run {}", rank / 2).as_bytes()).expect("compared");
        group.barrier().expect("all are here");
        (agrees, group.sum(&[0.1, 0.2, f64::from(rank) / 3.0]).expect("sums"))
    });
    assert_eq!(outcomes.iter().map(|(agrees, _)| *agrees).collect::<Vec<_>>(), [true, true, false]);
    let bits = |sums: &Vec<f64>| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
    assert!(outcomes.iter().all(|(_, sums)| bits(sums) == bits(&outcomes[0].1)), "the same bits everywhere");
}

#[test]
fn a_rank_that_leaves_fails_the_others_call_at_once() {
    let started = Instant::now();
    among(2, PATIENCE, |meeting, rank| {
        let group = connect(meeting, rank, 2);
        group.barrier().expect("both are here");
        if rank == 1 {
            return;
        }
        assert_ranks(group.sum(&[1.0]), &["all-reduce on rank 0 of 2", "another rank of this job has ended"]);
        assert_ranks(group.barrier(), &["barrier on rank 0 of 2"]);
    });
    assert!(started.elapsed() < PATIENCE, "not by the timeout");
}

#[test]
fn a_rank_that_never_comes_is_waited_for_no_longer_than_allowed() {
    among(1, SHORT, |meeting, _| {
        assert_ranks(ProcessGroup::open(meeting, own(0), 0, 2, SHORT), &["rank 0 of 2 at 127.0.0.1"]);
        assert!(!meeting.has("ready").expect("asked"));
        assert_ranks(meeting.get("ready"), &["waiting for \"ready\" at the meeting"]);
        meeting.set("ready", b"yes").expect("set");
        assert!(meeting.has("ready").expect("asked"));
        assert_eq!(meeting.get("ready").expect("there"), b"yes");
        assert_ranks(ProcessGroup::open(meeting, own(0), 2, 2, SHORT), &["ranks count from 0"]);
        // TEST-NET-3: no machine has it.
        let foreign = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
        assert_ranks(ProcessGroup::open(meeting, foreign, 0, 1, SHORT), &["rank 0 of 1 at 203.0.113.1"]);
    });
}

#[test]
fn a_meeting_that_nobody_hosts_is_an_error_with_its_address() {
    let address = TcpListener::bind(("127.0.0.1", 0)).expect("a port").local_addr().expect("its address");
    assert_ranks(Meeting::join(address, Duration::from_secs(1)), &["meeting at 127.0.0.1:", "timed out"]);
}

#[test]
fn many_groups_of_one_process_may_begin_at_the_same_moment() {
    let groups = 16;
    for _ in 0..10 {
        let start = Barrier::new(groups);
        thread::scope(|scope| {
            for _ in 0..groups {
                scope.spawn(|| {
                    let sums = among(1, PATIENCE, |meeting, rank| {
                        let group = connect(meeting, rank, 1);
                        start.wait();
                        group.sum(&[1.5]).expect("sums")
                    });
                    assert_eq!(sums, [[1.5]]);
                });
            }
        });
    }
}
