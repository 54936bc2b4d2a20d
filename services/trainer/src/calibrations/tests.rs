use tailor_plan::Device as Place;

use super::*;

const MINUTE: u64 = 60_000;
const START: u64 = 1_700_000_000_000;

fn calibration(gib: u64, measured_at_ms: u64) -> Calibration {
    on(Place::cpu("a host", gib << 30, true), measured_at_ms)
}

fn on(device: Place, measured_at_ms: u64) -> Calibration {
    Calibration { device, threads: 2, rates: BTreeMap::new(), measured_at_ms }
}

fn trainer(gib: u64) -> String {
    format!("{gib:064x}")
}

async fn planned_for(calibrations: &Calibrations, now_ms: u64) -> Vec<u64> {
    planned_as(calibrations, Class::Cpu, now_ms).await
}

async fn planned_as(calibrations: &Calibrations, class: Class, now_ms: u64) -> Vec<u64> {
    let all = calibrations.to_plan_for(class, now_ms).await.expect("read");
    all.iter().map(|calibration| calibration.device.memory_bytes >> 30).collect()
}

#[tokio::test]
async fn only_machines_that_are_there_are_planned_for_and_else_the_last_that_was() {
    let calibrations = Calibrations::of(&Store::memory());
    assert!(planned_for(&calibrations, START).await.is_empty(), "nobody has said anything");
    let come = async |gib, at| calibrations.presence(trainer(gib), calibration(gib, at), at).await.expect("stored");
    let mut large = come(64, START).await;
    let mut small = come(16, START + MINUTE).await;
    assert_eq!(planned_for(&calibrations, START + 2 * MINUTE).await.len(), 2);
    // The large one is silent from here on.
    small.say(START + 14 * MINUTE, false).await.expect("stored");
    assert_eq!(planned_for(&calibrations, START + 16 * MINUTE).await, [16]);
    assert_eq!(planned_for(&calibrations, START + 40 * MINUTE).await, [16], "none is there, and it was last");
    large.say(START + 41 * MINUTE, false).await.expect("stored");
    assert_eq!(planned_for(&calibrations, START + 42 * MINUTE).await, [64]);
}

#[tokio::test]
async fn a_worker_that_says_goodbye_counts_no_more_at_once_unless_another_is_like_it() {
    let calibrations = Calibrations::of(&Store::memory());
    let come = async |gib| calibrations.presence(trainer(gib), calibration(gib, START), START).await.expect("stored");
    let (mut first, mut second) = (come(64).await, come(64).await);
    first.say(START + MINUTE, true).await.expect("stored");
    let _small = come(16).await;
    assert_eq!(planned_for(&calibrations, START + 2 * MINUTE).await.len(), 2, "one like it is there");
    second.say(START + 3 * MINUTE, true).await.expect("stored");
    assert_eq!(planned_for(&calibrations, START + 4 * MINUTE).await, [16]);
    let signs = calibrations.store.list(SIGHTINGS).await.expect("listed");
    assert_eq!(signs.len(), 3, "one each: {signs:?}");
}

#[tokio::test]
async fn a_gpu_that_is_gone_is_planned_for_where_only_a_gpu_will_do_and_is_missed_until_it_comes_back() {
    let calibrations = Calibrations::of(&Store::memory());
    let absent = async |now| calibrations.absences(now).await.expect("read");
    let never = |class| Absence { class, seen_at_ms: None };
    assert_eq!(absent(START).await, [never(Class::Cpu), never(Class::Gpu)]);
    let _host = calibrations.presence(trainer(16), calibration(16, START), START).await.expect("stored");
    assert_eq!(absent(START).await, [never(Class::Gpu)]);
    assert_eq!(planned_as(&calibrations, Class::Gpu, START).await, [16], "there never was one");
    let card = on(Place::gpu("a card", 80 << 30), START);
    let mut card = calibrations.presence(trainer(80), card, START).await.expect("stored");
    assert_eq!(planned_as(&calibrations, Class::Gpu, START).await.len(), 2);
    assert!(absent(START).await.is_empty());
    card.say(START + MINUTE, true).await.expect("stored");
    let later = START + 2 * MINUTE;
    assert_eq!(absent(later).await, [Absence { class: Class::Gpu, seen_at_ms: Some(START + MINUTE) }]);
    assert_eq!(planned_as(&calibrations, Class::Gpu, later).await.len(), 2, "it may come back");
    assert_eq!(planned_for(&calibrations, later).await, [16], "what a host can do is not for one that is gone");
    let there = calibrations.there(later).await.expect("read");
    assert_eq!(there.len(), 1, "{there:?}");
    card.say(later, false).await.expect("stored");
    assert!(absent(later).await.is_empty());
}

#[tokio::test]
async fn a_machine_that_cannot_be_read_hides_no_other() {
    let calibrations = Calibrations::of(&Store::memory());
    let _host = calibrations.presence(trainer(16), calibration(16, START), START).await.expect("stored");
    let newer = br#"{"device":{"name":"new","kind":"tpu","memory_bytes":1},"threads":1,"rates":{},"measured_at_ms":0}"#;
    let written = calibrations.store.create_raw(&calibration_key(&trainer(1)), newer.as_slice()).await;
    assert!(written.expect("stored").is_none());
    assert_eq!(planned_for(&calibrations, START).await, [16]);
}

#[tokio::test]
async fn a_machine_whose_record_is_damaged_is_measured_anew() {
    let calibrations = Calibrations::of(&Store::memory());
    let device = Device::start("tailor-device-test").expect("a thread");
    let introduce = async || calibrations.introduce(&device, Path::new("."), false, None).await.map(drop);
    introduce().await.expect("said");
    let keys = calibrations.store.list(FOLDER).await.expect("listed");
    let [key] = keys.as_slice() else { panic!("one machine") };
    calibrations.store.delete(key).await.expect("deleted");
    assert!(calibrations.store.create_raw(key, b"{".as_slice()).await.expect("stored").is_none());
    assert!(calibrations.there(now_ms()).await.expect("read").is_empty());
    introduce().await.expect("said again");
    assert_eq!(calibrations.there(now_ms()).await.expect("read").len(), 1);
}

#[tokio::test]
async fn what_nobody_has_seen_for_a_month_counts_no_more_though_nobody_has_cleared_it_away() {
    let calibrations = Calibrations::of(&Store::memory());
    let card = on(Place::gpu("a card", 80 << 30), START);
    let _card = calibrations.presence(trainer(80), card, START).await.expect("stored");
    let (month, later) = (START + FORGOTTEN_MS, START + FORGOTTEN_MS + 1);
    let _host = calibrations.presence(trainer(16), calibration(16, month), month).await.expect("stored");
    assert_eq!(planned_as(&calibrations, Class::Gpu, month).await.len(), 2, "it may come back");
    assert_eq!(planned_as(&calibrations, Class::Gpu, later).await, [16]);
    let absent = calibrations.absences(later).await.expect("read");
    assert_eq!(absent, [Absence { class: Class::Gpu, seen_at_ms: None }]);
}

#[tokio::test]
async fn a_machine_that_comes_back_while_it_is_forgotten_stays() {
    let calibrations = Calibrations::of(&Store::memory());
    let mut old = calibrations.presence(trainer(64), calibration(64, START), START).await.expect("stored");
    let later = START + FORGOTTEN_MS + MINUTE;
    let kinds = calibrations.kinds(later).await.expect("read");
    let [kind] = kinds.as_slice() else { panic!("one machine") };
    assert!(kind.is_forgotten(later));
    // Between whoever forgets it looking at it and deleting it.
    old.say(later, false).await.expect("stored");
    calibrations.forget_kind(kind).await.expect("forgotten");
    assert_eq!(planned_for(&calibrations, later).await, [64]);
}

#[tokio::test]
async fn what_cannot_be_read_is_forgotten_too_unless_a_worker_was_there_lately() {
    let calibrations = Calibrations::of(&Store::memory());
    let _other = calibrations.presence(trainer(2), calibration(2, START), START).await.expect("stored");
    let _host = calibrations.presence(trainer(16), calibration(16, START), START).await.expect("stored");
    for gib in [1, 2] {
        let key = calibration_key(&trainer(gib));
        calibrations.store.delete(&key).await.expect("deleted");
        assert!(calibrations.store.create_raw(&key, b"{".as_slice()).await.expect("stored").is_none());
    }
    calibrations.forget(START + MINUTE).await.expect("forgotten");
    let left = calibrations.store.list(FOLDER).await.expect("listed");
    assert_eq!(left, [calibration_key(&trainer(2)), calibration_key(&trainer(16))]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stays_clears_away_once_a_day_what_is_forgotten() {
    let calibrations = Calibrations::of(&Store::memory());
    let _old = calibrations.presence(trainer(64), calibration(64, START), START).await.expect("stored");
    let now = now_ms();
    let host = calibrations.presence(trainer(16), calibration(16, now), now).await.expect("stored");
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(host.keep(stop.clone()));
    tokio::time::sleep(TIDY_EVERY / 2).await;
    assert_eq!(calibrations.store.list(FOLDER).await.expect("listed").len(), 2, "not yet");
    tokio::time::sleep(TIDY_EVERY).await;
    assert_eq!(calibrations.store.list(FOLDER).await.expect("listed"), [calibration_key(&trainer(16))]);
    stop.cancel();
    keeping.await.expect("ends");
}

#[tokio::test]
async fn what_nobody_has_seen_for_a_month_is_forgotten_until_it_comes_back() {
    let calibrations = Calibrations::of(&Store::memory());
    let mut old = calibrations.presence(trainer(64), calibration(64, START), START).await.expect("stored");
    let later = START + FORGOTTEN_MS + MINUTE;
    let _new = calibrations.presence(trainer(16), calibration(16, later), later).await.expect("stored");
    calibrations.forget(later).await.expect("forgotten");
    assert_eq!(calibrations.store.list(FOLDER).await.expect("listed").len(), 1);
    assert_eq!(calibrations.store.list(SIGHTINGS).await.expect("listed").len(), 1);
    old.say(later, false).await.expect("stored anew");
    assert_eq!(planned_for(&calibrations, later).await.len(), 2);
}
