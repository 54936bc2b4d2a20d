use tailor_queue::InProcessQueue;
use tailor_serverkit::Settings;

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
