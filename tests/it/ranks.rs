//! One job on several workers, each a process: in networks of their own, killed in mid-training, too few, and in each other's way.

use std::time::Duration;

use tailor_pb::{registry, training};
use tailor_testkit::{TempDir, free_port};

use crate::support::clients::Addresses;
use crate::support::networks::Networks;
use crate::support::{Cluster, Family, Process, Training, Up, eventually};

/// Long enough for two workers to be killed one after the other.
const LONG: u64 = 200;

/// Workers of a cluster whose trainer only answers calls.
struct Workers<'a> {
    // Dropped first to last: the processes before what they stand on.
    processes: Vec<Process>,
    cluster: &'a Cluster,
    networks: Option<Networks>,
    folder: TempDir,
}

impl<'a> Workers<'a> {
    async fn start(cluster: &'a Cluster, networks: Option<Networks>, count: usize) -> Workers<'a> {
        if let Some(networks) = &networks {
            for port in cluster.ports() {
                networks.forward(port).await;
            }
        }
        let mut workers = Self { processes: Vec::new(), cluster, networks, folder: TempDir::new() };
        for at in 0..count {
            let process = workers.spawn(at);
            workers.processes.push(process);
        }
        workers
    }

    fn spawn(&self, at: usize) -> Process {
        self.spawn_with(at, &[])
    }

    fn spawn_with(&self, at: usize, settings: &[(&str, &str)]) -> Process {
        let name = format!("worker-{at}");
        let mut command = self.cluster.worker_command(&name, free_port());
        command.envs(settings.iter().copied());
        // Begins the name that a worker goes by in a job's log.
        command.env("HOSTNAME", &name);
        let command = match &self.networks {
            Some(networks) => networks.command(at, &command),
            None => {
                command.env("TAILOR__TRAINER__RENDEZVOUS_HOST", format!("127.0.0.{}", 10 + at));
                command
            }
        };
        Process::spawn(&name, command, self.folder.path())
    }

    /// One more, with settings of its own.
    fn add(&mut self, settings: &[(&str, &str)]) {
        let process = self.spawn_with(self.processes.len(), settings);
        self.processes.push(process);
    }

    /// SIGKILL, then another process in its place.
    fn replace(&mut self, at: usize) {
        self.processes[at].kill();
        self.processes[at] = self.spawn(at);
    }
}

async fn cluster(settings: &[(&str, &str)]) -> Option<Cluster> {
    let mut cluster = Cluster::prepare()?;
    cluster.set("TRAINER__WORKER", "false");
    cluster.set("TRAINER__CHECKPOINT_MS", "50");
    for (key, value) in settings {
        cluster.set(key, *value);
    }
    cluster.start_all().await;
    cluster.add_base_and_rows(Family::T5).await;
    Some(cluster)
}

async fn create(at: &Addresses, adapter: &str, ranks: u32, steps: u64) -> String {
    let mut request = Training { base: Family::T5.base(), dataset: "rows", adapter, steps, key: adapter }.request();
    // With dropout, so that the generator's place matters.
    request.lora = Some(training::Lora { rank: Some(4), dropout: Some(0.1), ..Default::default() });
    if let Some(training) = &mut request.training {
        (training.ranks, training.micro_batch_rows) = (Some(ranks), Some(2));
    }
    at.trainer().create_job(request).await.expect("job created").into_inner().id
}

/// The workers of attempt `number`, by rank, once it has made so many steps.
async fn workers_of(at: &Addresses, job: &str, number: u64, steps: u64) -> Vec<usize> {
    let mut workers = Vec::new();
    at.watch_until(job, |event| {
        if let Some(rest) = event.message.strip_prefix(&format!("attempt {number} on ")) {
            let number = |part: &str| part.split('-').next().and_then(|digit| digit.parse().ok());
            workers = rest.split("worker-").filter_map(number).collect();
        }
        !workers.is_empty() && event.steps.iter().any(|step| step.step >= steps)
    })
    .await;
    workers
}

async fn messages(at: &Addresses, job: &str) -> Vec<String> {
    let request = training::WatchJobRequest { id: job.to_owned(), from_sequence: 1, no_follow: true };
    let mut stream = at.trainer().watch_job(request).await.expect("the log").into_inner();
    let mut messages = Vec::new();
    while let Ok(Some(event)) = stream.message().await {
        messages.push(event.message);
    }
    messages
}

async fn weights(at: &Addresses, adapter: &str) -> String {
    let request = registry::ResolveRequest { reference: format!("{adapter}@1") };
    at.registry().resolve(request).await.expect("resolved").into_inner().weights_digest
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_train_one_job_and_killing_either_costs_time_but_no_bit() {
    let Some(cluster) = cluster(&[]).await else { return };
    let at = cluster.addresses.clone();
    let mut workers = Workers::start(&cluster, Networks::make(2), 2).await;

    let killed = create(&at, "killed", 2, LONG).await;
    let first = workers_of(&at, &killed, 1, 1).await;
    assert_eq!((first.len(), first.contains(&0), first.contains(&1)), (2, true, true), "both train: {first:?}");
    workers.replace(first[1]);
    // Late enough that a checkpoint is in the store, and early enough that there is something left.
    let second = workers_of(&at, &killed, 2, LONG / 2).await;
    workers.replace(second[0]);
    let killed_job = at.succeeded(&killed).await;
    let told = messages(&at, &killed).await;
    assert_eq!((killed_job.attempts >= 3, killed_job.adapter_version), (true, 1), "{told:#?}");
    assert_eq!(at.versions("killed").await, 1, "one version");
    let interrupted = told.iter().find(|message| message.contains("attempt 1 was interrupted"));
    assert!(interrupted.is_some_and(|message| message.contains("another rank of this job has ended")), "{told:#?}");
    assert!(told.iter().any(|message| message.contains("going on after step")), "from its checkpoint: {told:#?}");

    let whole = create(&at, "whole", 2, LONG).await;
    let whole_job = at.succeeded(&whole).await;
    assert_eq!(whole_job.attempts, 1, "this one was left alone");
    assert_eq!(weights(&at, "killed").await, weights(&at, "whole").await, "the same bytes");
    assert_eq!(killed_job.metrics["train_loss"].to_bits(), whole_job.metrics["train_loss"].to_bits());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_want_each_others_workers_all_come_to_their_end() {
    let Some(cluster) = cluster(&[("TRAINER__GATHER_MS", "20000")]).await else { return };
    let at = cluster.addresses.clone();
    // All wait in the queue before the first worker comes, so that the workers lease one each.
    let mut jobs = Vec::new();
    for (adapter, ranks) in [("a", 2), ("b", 2), ("c", 3), ("d", 1)] {
        jobs.push(create(&at, adapter, ranks, 10).await);
    }
    let _workers = Workers::start(&cluster, None, 3).await;
    for (job, adapter) in jobs.iter().zip(["a", "b", "c", "d"]) {
        let done = at.succeeded(job).await;
        assert_eq!((done.attempts, at.versions(adapter).await), (1, 1), "{adapter}: gathering costs no attempt");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_could_not_hold_its_part_takes_no_seat_and_leaves_it_to_one_that_can() {
    let Some(cluster) = cluster(&[("TRAINER__GATHER_MS", "20000")]).await else { return };
    let at = cluster.addresses.clone();
    let mut workers = Workers::start(&cluster, None, 1).await;
    let job =
        training::CreateJobRequest { base: Family::T5.base().into(), dataset: "rows".into(), ..Default::default() };
    eventually("the large worker has said what it has", async || {
        let request = training::PlanJobRequest { job: Some(job.clone()), ..Default::default() };
        let plan = at.trainer().plan_job(request).await.expect("planned").into_inner();
        (plan.fits_a_trainer == Some(true)).then_some(())
    })
    .await;
    workers.add(&[("TAILOR__TRAINER__MEMORY_BYTES", "1048576")]);
    let id = create(&at, "shared", 2, 10).await;
    // Long enough for the small one to take a seat, were it to.
    at.watch_until(&id, |event| event.message.starts_with("waiting for 2 free workers at once (train.ranks)")).await;
    assert_eq!(at.job(&id).await.attempts, 0, "the small one is no rank of it");
    workers.add(&[]);
    let mut of_job = workers_of(&at, &id, 1, 1).await;
    of_job.sort_unstable();
    assert_eq!(of_job, [0, 2]);
    assert_eq!(at.succeeded(&id).await.attempts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_workers_are_told_hold_up_no_other_job_and_the_wait_can_be_cancelled() {
    let Some(cluster) = cluster(&[("TRAINER__GATHER_MS", "1000")]).await else { return };
    let at = cluster.addresses.clone();
    let _workers = Workers::start(&cluster, None, 1).await;
    let waiting = create(&at, "waiting", 2, 10).await;
    at.watch_until(&waiting, |event| event.message.starts_with("waiting for 2 free workers at once (train.ranks)"))
        .await;
    let small = create(&at, "small", 1, 10).await;
    at.succeeded(&small).await;
    // Tried again and again by now, and told once.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = messages(&at, &waiting).await;
    assert_eq!(told.iter().filter(|message| message.contains("free workers")).count(), 1, "{told:#?}");
    let job = at.job(&waiting).await;
    assert_eq!((job.state.as_str(), job.attempts), ("QUEUED", 0));
    let request = training::CancelJobRequest { id: waiting.clone() };
    at.trainer().cancel_job(request).await.expect("cancelled");
    let depth = eventually("the queue is empty", async || {
        let waits = cluster.redis.command("HLEN {tailor}:entries");
        waits.starts_with(":0").then_some(waits)
    });
    depth.await;
    assert_eq!(at.job(&waiting).await.state, "CANCELLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_always_has_jobs_lets_them_end_for_one_that_it_has_passed_by() {
    let settings = [("TRAINER__GATHER_MS", "60000"), ("TRAINER__OVERTAKE_MS", "1000")];
    let Some(cluster) = cluster(&settings).await else { return };
    let at = cluster.addresses.clone();
    let mut workers = Workers::start(&cluster, None, 0).await;
    workers.add(&[("TAILOR__TRAINER__JOBS_AT_ONCE", "2")]);
    // They fill it, so that it leases none of those that come later.
    let mut running = Vec::new();
    for adapter in ["one", "two"] {
        let id = create(&at, adapter, 1, 100_000).await;
        at.wait_for_steps(&id).await;
        running.push(id);
    }
    let id = create(&at, "shared", 2, 10).await;
    workers.add(&[]);
    at.watch_until(&id, |event| event.message.contains("keeps a seat for this job and takes no other")).await;
    for id in running {
        at.trainer().cancel_job(training::CancelJobRequest { id }).await.expect("cancelled");
    }
    let mut of_job = workers_of(&at, &id, 1, 1).await;
    of_job.sort_unstable();
    assert_eq!(of_job, [0, 1]);
    assert_eq!(at.succeeded(&id).await.attempts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_alone_refuses_ranks_that_it_can_never_have() {
    let mut up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let train = ["train", "--base", Family::T5.base(), "--dataset", "rows", "--adapter", "a", "--ranks", "2"];
    up.cli()
        .refused(&train)
        .says("INVALID_ARGUMENT", &["train.ranks: 2", "`tailor up` has one worker", "tailor-trainer"]);
    let train = [&train[..8], &["3", "--batch", "2"]].concat();
    up.cli().refused(&train).says("INVALID_ARGUMENT", &["train.ranks: 3 share a batch of 2 rows"]);
    assert_eq!(up.stop(), Some(0));
}
