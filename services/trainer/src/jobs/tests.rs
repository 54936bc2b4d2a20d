use tailor_blobs::numbered_key;
use tailor_queue::InProcessQueue;
use tailor_serverkit::Settings;
use tailor_testkit::FlakyStore;

use super::*;
use crate::fixtures::spec;

fn jobs(store: &Store) -> Jobs {
    let settings = Settings::default();
    let clients = Clients::connect(&settings).expect("addresses");
    let queue = Arc::new(InProcessQueue::new());
    Jobs::new(Journal::new(store.clone()), store.clone(), queue, clients, &settings.trainer)
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_no_worker_has_it_leaves_no_checkpoint_behind() {
    let store = Store::memory();
    let (jobs, job) = (jobs(&store), JobId::from_parts(1_700_000_000_000, 1));
    assert!(jobs.journal.create(&job, &spec()).await.expect("stored").is_created());
    for event in [JobEvent::Leased, JobEvent::Prepare, JobEvent::Train, JobEvent::LeaseLost] {
        jobs.journal.event(&job, 1, event, "").await.expect("stored");
    }
    let checkpoints = Checkpoints::of(&store, &job);
    checkpoints.save(1, 5, b"a checkpoint".to_vec()).await.expect("saved");
    let read = |_: &[u8]| Ok::<_, String>(());
    assert!(checkpoints.newest(read).await.expect("read").is_some());
    let cancelled = jobs.cancel(&job).await.expect("cancelled");
    assert_eq!(cancelled.view.state, JobState::Cancelled);
    assert!(checkpoints.newest(read).await.expect("read").is_none());
}

#[tokio::test]
async fn a_queued_job_says_that_nobody_is_there_and_one_that_is_given_up_fails() {
    let store = Store::memory();
    let (jobs, job) = (jobs(&store), JobId::from_parts(1_700_000_000_000, 1));
    assert!(jobs.journal.create(&job, &spec()).await.expect("stored").is_created());
    let queued = jobs.get(&job).await.expect("read");
    assert_eq!(queued.waiting.as_deref(), Some("no trainer has been there yet"));
    jobs.tell(&job, 0, Word::GivenUp("nobody came".into())).await.expect("told");
    let failed = jobs.get(&job).await.expect("read");
    assert_eq!((failed.view.state, failed.view.error.as_deref()), (JobState::Failed, Some("nobody came")));
    assert_eq!(failed.waiting, None);
}

#[tokio::test]
async fn a_job_that_cannot_be_read_hides_no_other_in_the_list_and_is_there_itself() {
    let (backend, faults) = FlakyStore::memory();
    let store = Store::over(backend, "memory://");
    let jobs = jobs(&store);
    let [no_spec, no_log, sound] = [1, 2, 3].map(|number| JobId::from_parts(1_700_000_000_000, number));
    for job in [&no_log, &sound] {
        assert!(jobs.journal.create(job, &spec()).await.expect("stored").is_created());
    }
    for key in [format!("jobs/{no_spec}/spec.json"), numbered_key(&format!("jobs/{no_log}/log"), 1)] {
        assert!(store.create_raw(&key, b"{".as_slice()).await.expect("stored").is_none());
    }
    // Pages of two: the damaged ones are on both.
    let (first, next) = jobs.list(2, "").await.expect("listed");
    let [Listed::Whole(whole), Listed::Unreadable(damaged)] = first.as_slice() else { panic!("{} jobs", first.len()) };
    assert_eq!((&whole.id, &damaged.id, damaged.spec.is_some()), (&sound, &no_log, true));
    assert!(damaged.error.to_string().contains("cannot be read as LogEntry"), "{}", damaged.error);
    let (rest, end) = jobs.list(2, next.expect("more").as_str()).await.expect("listed");
    let [Listed::Unreadable(damaged)] = rest.as_slice() else { panic!("{} jobs", rest.len()) };
    assert_eq!((&damaged.id, damaged.spec.is_none(), end), (&no_spec, true, None));
    let unknown = jobs.list(2, "two").await.err().expect("no token").to_string();
    assert!(unknown.starts_with("page.token: it is no token of ours"), "{unknown}");
    faults.cut();
    let away = jobs.list(2, "").await.err().expect("the store is away");
    assert!(away.retryable(), "{away}");
}
