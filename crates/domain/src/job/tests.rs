use super::*;

const EVENTS: [JobEvent; 12] = [
    JobEvent::Leased,
    JobEvent::Prepare,
    JobEvent::Train,
    JobEvent::Pause,
    JobEvent::Resume,
    JobEvent::Evaluate,
    JobEvent::Publish,
    JobEvent::Succeed,
    JobEvent::Fail,
    JobEvent::Cancel,
    JobEvent::LeaseLost,
    JobEvent::Unclaimed,
];

fn entry(fence: u64, event: JobEvent) -> LogEntry {
    LogEntry { seq: 0, at_ms: 0, fence, message: String::new(), kind: LogKind::State { event } }
}

#[test]
fn a_finished_job_accepts_nothing() {
    for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
        for event in EVENTS {
            assert_eq!(state.next(event), Err(Refused { state, event }));
        }
    }
}

#[test]
fn every_unfinished_state_can_fail_and_be_cancelled() {
    for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
        assert_eq!(state.next(JobEvent::Fail), Ok(JobState::Failed));
        assert_eq!(state.next(JobEvent::Cancel), Ok(JobState::Cancelled));
    }
}

#[test]
fn success_is_reached_only_through_publishing() {
    for state in JobState::ALL {
        let reached = state.next(JobEvent::Succeed) == Ok(JobState::Succeeded);
        assert_eq!(reached, state == JobState::Publishing, "{state}");
    }
}

#[test]
fn the_table_is_exactly_this() {
    let accepted: usize =
        JobState::ALL.iter().map(|state| EVENTS.iter().filter(|event| state.next(**event).is_ok()).count()).sum();
    // 7 unfinished states × (fail, cancel) + 6 leases + 5 lost leases + 4 pauses + 6 steps forward + unclaimed
    assert_eq!(accepted, 14 + 6 + 5 + 4 + 6 + 1);
}

#[test]
fn the_straight_way_leads_to_success() {
    use JobEvent as E;
    let log = [E::Leased, E::Prepare, E::Train, E::Evaluate, E::Publish, E::Succeed].map(|event| entry(1, event));
    assert_eq!(fold(&log), JobState::Succeeded);
}

#[test]
fn a_paused_job_waits_for_its_owner_whatever_its_worker_says() {
    use JobEvent as E;
    let mut log = [E::Leased, E::Prepare, E::Train, E::Pause].map(|event| entry(1, event)).to_vec();
    // The worker did not know yet.
    log.extend([E::Evaluate, E::Publish, E::Succeed, E::LeaseLost].map(|event| entry(1, event)));
    log.push(entry(2, E::Leased));
    assert_eq!(fold(&log), JobState::Paused);
    log.push(entry(0, E::Resume));
    assert_eq!(fold(&log), JobState::Queued);
    log.push(entry(1, E::Publish));
    assert_eq!(fold(&log), JobState::Queued, "what was paused is not published by the attempt that was paused");
}

#[test]
fn only_what_has_not_been_trained_to_the_end_can_be_paused() {
    use JobState as S;
    for state in JobState::ALL {
        let can = matches!(state, S::Queued | S::Leased | S::Preparing | S::Training);
        assert_eq!(state.next(JobEvent::Pause) == Ok(S::Paused), can, "{state}");
    }
}

#[test]
fn only_a_job_that_nobody_has_is_given_up_for_want_of_a_worker() {
    for state in JobState::ALL {
        let given_up = state.next(JobEvent::Unclaimed) == Ok(JobState::Failed);
        assert_eq!(given_up, state == JobState::Queued, "{state}");
    }
}

#[test]
fn a_zombies_late_words_change_nothing() {
    use JobEvent as E;
    let log = [
        entry(1, E::Leased),
        entry(1, E::Prepare),
        entry(2, E::Leased),
        entry(1, E::Train),
        entry(1, E::Fail),
        entry(2, E::Prepare),
    ];
    assert_eq!(fold(&log), JobState::Preparing);
}

#[test]
fn a_log_entry_survives_json() {
    let written = LogEntry {
        seq: 7,
        at_ms: 1,
        fence: 2,
        message: "m".into(),
        kind: LogKind::Metrics { metrics: BTreeMap::from([("exact_match".into(), 0.5)]) },
    };
    let json = serde_json::to_string(&written).expect("plain data");
    assert_eq!(serde_json::from_str::<LogEntry>(&json).expect("own words"), written);
}
