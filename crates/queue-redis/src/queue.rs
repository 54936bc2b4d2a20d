//! [`RedisQueue`]: the trait's methods as scripts.

use std::fmt;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisResult, ScriptInvocation};
use tailor_domain::JobId;
use tailor_queue::{Class, Depth, Error, JobQueue, Lease, Result, Seat, Standing};

use crate::changes::{CHANNEL, Changes};
use crate::classify::queue_error;
use crate::scripts::{Scripts, call};
use crate::{GPU_STREAM, STREAM};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For plain commands; the client's own default of 500 ms is short for a server that rewrites its log.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest single wait for work. Between waits leases that ran out are looked for and a lost group is made again.
const LONGEST_BLOCK: Duration = Duration::from_secs(5);

/// A [`JobQueue`] in Redis, shared by all processes that name the same server and database.
pub struct RedisQueue {
    client: Client,
    /// For everything that answers at once; reconnects by itself.
    connection: ConnectionManager,
    scripts: Scripts,
    changes: Changes,
    /// Host and port, for messages: a URL may hold a password.
    address: String,
}

impl RedisQueue {
    /// Connects to `redis://[user:password@]host:port[/database]` and makes sure that the server answers.
    ///
    /// # Errors
    /// [`Error::BadAddress`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn connect(url: &str) -> Result<Self> {
        let client = Client::open(url)
            .map_err(|error| Error::BadAddress { address: without_credentials(url), problem: error.to_string() })?;
        let address = client.get_connection_info().addr().to_string();
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_min_delay(Duration::from_millis(100))
            .set_max_delay(Duration::from_secs(1))
            .set_number_of_retries(2);
        let connection = ConnectionManager::new_with_config(client.clone(), config).await;
        let connection = connection.map_err(|error| queue_error(&address, &error))?;
        let changes = Changes::listen(client.clone());
        let queue = Self { client, connection, scripts: Scripts::new(), changes, address };
        queue.ping().await?;
        Ok(queue)
    }

    /// Runs a script that may run twice without harm: a connection that died unnoticed fails the first command sent over
    /// it, so that one is sent again.
    async fn run_again<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T> {
        let mut connection = self.connection.clone();
        let outcome: RedisResult<T> = match invocation.invoke_async(&mut connection).await {
            Err(error) if error.is_connection_dropped() => invocation.invoke_async(&mut connection).await,
            outcome => outcome,
        };
        outcome.map_err(|error| self.error(&error))
    }

    /// Runs a script of which the caller must know whether it ran.
    async fn run_once<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T> {
        invocation.invoke_async(&mut self.connection.clone()).await.map_err(|error| self.error(&error))
    }

    /// Ends a lease by one of the scripts that do.
    async fn end(&self, script: &redis::Script, lease: &Lease) -> Result<()> {
        let ended: bool = self.run_once(&call(script, &[lease.job.as_str(), &lease.epoch.to_string()])).await?;
        if ended { Ok(()) } else { Err(lost(lease)) }
    }

    async fn try_lease(&self, worker: &str, class: Class, ttl: Duration) -> Result<Attempt> {
        let ttl_ms = millis(ttl).to_string();
        let reply: Vec<String> = self.run_again(&call(&self.scripts.lease, &[worker, class.as_str(), &ttl_ms])).await?;
        parse_attempt(worker, ttl, &reply).ok_or_else(|| self.unexpected("lease", &reply))
    }

    async fn seat(&self, seat: &Seat, ttl: Duration) -> Result<i64> {
        let (epoch, rank, ttl) = (seat.epoch.to_string(), seat.rank.to_string(), millis(ttl).to_string());
        self.run_again(&call(&self.scripts.keep_seat, &[seat.job.as_str(), &epoch, &rank, &seat.worker, &ttl])).await
    }

    /// A connection for blocking commands: on a shared one they would stall everybody else.
    async fn connect_for_blocking(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(LONGEST_BLOCK + RESPONSE_TIMEOUT));
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| self.error(&error))
    }

    /// Blocks until a stream has an entry after its own of `last_ids`, at most `timeout`. There is an id for the first stream,
    /// or one for each.
    async fn block(
        &self,
        connection: &mut MultiplexedConnection,
        last_ids: &[String],
        timeout: Duration,
    ) -> Result<()> {
        let mut command = redis::cmd("XREAD");
        // BLOCK 0 would block for ever.
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(timeout).max(1)).arg("STREAMS");
        for (stream, _) in [STREAM, GPU_STREAM].into_iter().zip(last_ids) {
            command.arg(stream);
        }
        for id in last_ids {
            command.arg(id.as_str());
        }
        command.exec_async(connection).await.map_err(|error| self.error(&error))
    }

    fn unexpected(&self, script: &str, reply: &[String]) -> Error {
        Error::Refused { address: self.address.clone(), problem: format!("the {script} script answered {reply:?}") }
    }

    fn error(&self, error: &redis::RedisError) -> Error {
        queue_error(&self.address, error)
    }
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What one look for work came to.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    Leased(Lease),
    Nothing {
        /// When the nearest lease runs out.
        wake_after: Option<Duration>,
        /// The last entry of each stream that is for this worker: a later one means work.
        last_ids: Vec<String>,
    },
}

fn parse_attempt(worker: &str, ttl: Duration, reply: &[String]) -> Option<Attempt> {
    match reply {
        [kind, job, epoch, class, trace] if kind == "job" => Some(Attempt::Leased(Lease {
            job: JobId::try_new(job.as_str()).ok()?,
            epoch: epoch.parse().ok()?,
            worker: worker.to_owned(),
            class: Class::named(class)?,
            ttl,
            trace: (!trace.is_empty()).then(|| trace.clone()),
        })),
        [kind, left_ms, last_ids @ ..] if kind == "none" && !last_ids.is_empty() => {
            let wake_after = if left_ms.is_empty() { None } else { Some(Duration::from_millis(left_ms.parse().ok()?)) };
            Some(Attempt::Nothing { wake_after, last_ids: last_ids.to_vec() })
        }
        _ => None,
    }
}

fn parse_seat(worker: &str, ttl: Duration, reply: &[String]) -> Option<Seat> {
    let [job, epoch, rank, seats, address] = reply else { return None };
    Some(Seat {
        job: JobId::try_new(job.as_str()).ok()?,
        epoch: epoch.parse().ok()?,
        rank: rank.parse().ok()?,
        ranks: seats.parse::<u32>().ok()?.checked_add(1)?,
        address: address.clone(),
        worker: worker.to_owned(),
        ttl,
    })
}

/// Of a reply that is not empty.
fn parse_standing(reply: &[String]) -> Option<Standing> {
    let (count, rest) = reply.split_first()?;
    let (older, taken) = rest.split_at_checked(count.parse().ok()?)?;
    let older = older.iter().map(|job| JobId::try_new(job.as_str()).ok()).collect::<Option<_>>()?;
    Some(Standing { taken: taken.to_vec(), older })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lost(lease: &Lease) -> Error {
    Error::LeaseLost { job: lease.job.clone(), epoch: lease.epoch }
}

fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        _ => url.to_owned(),
    }
}

#[async_trait]
impl JobQueue for RedisQueue {
    async fn enqueue(&self, job: &JobId, class: Class, trace: Option<String>) -> Result<bool> {
        let trace = trace.unwrap_or_default();
        self.run_again(&call(&self.scripts.enqueue, &[job.as_str(), class.as_str(), &trace])).await
    }

    async fn lease(&self, worker: &str, class: Class, ttl: Duration, wait: Duration) -> Result<Option<Lease>> {
        let started = Instant::now();
        let mut blocking = None;
        loop {
            let (wake_after, last_ids) = match self.try_lease(worker, class, ttl).await? {
                Attempt::Leased(lease) => return Ok(Some(lease)),
                Attempt::Nothing { wake_after, last_ids } => (wake_after, last_ids),
            };
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let connection = match &mut blocking {
                Some(connection) => connection,
                None => blocking.insert(self.connect_for_blocking().await?),
            };
            let timeout = wake_after.unwrap_or(LONGEST_BLOCK).min(LONGEST_BLOCK).min(left);
            self.block(connection, &last_ids, timeout).await?;
        }
    }

    async fn heartbeat(&self, lease: &Lease) -> Result<()> {
        let (epoch, ttl) = (lease.epoch.to_string(), millis(lease.ttl).to_string());
        let held: bool = self.run_again(&call(&self.scripts.heartbeat, &[lease.job.as_str(), &epoch, &ttl])).await?;
        if held { Ok(()) } else { Err(lost(lease)) }
    }

    async fn ack(&self, lease: &Lease) -> Result<()> {
        self.end(&self.scripts.ack, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.end(&self.scripts.release, lease).await
    }

    async fn call(&self, lease: &Lease, class: Class, seats: u32, address: &str) -> Result<Standing> {
        let (epoch, seats, ttl) = (lease.epoch.to_string(), seats.to_string(), millis(lease.ttl).to_string());
        let arguments = [lease.job.as_str(), &epoch, class.as_str(), &seats, &ttl, address];
        let reply: Vec<String> = self.run_again(&call(&self.scripts.call, &arguments)).await?;
        if reply.is_empty() {
            return Err(lost(lease));
        }
        parse_standing(&reply).ok_or_else(|| self.unexpected("call", &reply))
    }

    async fn hang_up(&self, lease: &Lease) -> Result<()> {
        let _: i64 =
            self.run_again(&call(&self.scripts.hang_up, &[lease.job.as_str(), &lease.epoch.to_string()])).await?;
        Ok(())
    }

    async fn calls(&self, class: Class) -> Result<Vec<JobId>> {
        let reply: Vec<String> = self.run_again(&call(&self.scripts.open_calls, &[class.as_str()])).await?;
        let jobs = reply.iter().map(|job| JobId::try_new(job.as_str()).ok()).collect::<Option<_>>();
        jobs.ok_or_else(|| self.unexpected("call", &reply))
    }

    async fn take_seat(&self, worker: &str, job: &JobId, ttl: Duration) -> Result<Option<Seat>> {
        let ttl_ms = millis(ttl).to_string();
        // Run twice it may leave a seat that nobody keeps, which is free again when its time has run out.
        let reply: Vec<String> =
            self.run_again(&call(&self.scripts.take_seat, &[worker, job.as_str(), &ttl_ms])).await?;
        if reply.is_empty() {
            return Ok(None);
        }
        parse_seat(worker, ttl, &reply).ok_or_else(|| self.unexpected("seat", &reply)).map(Some)
    }

    async fn keep_seat(&self, seat: &Seat) -> Result<bool> {
        match self.seat(seat, seat.ttl).await? {
            -1 => Err(Error::LeaseLost { job: seat.job.clone(), epoch: seat.epoch }),
            closed => Ok(closed == 1),
        }
    }

    async fn leave_seat(&self, seat: &Seat) -> Result<()> {
        self.seat(seat, Duration::ZERO).await?;
        Ok(())
    }

    async fn depth(&self) -> Result<Depth> {
        let (queued, leased): (u64, u64) = self.run_again(&call(&self.scripts.depth, &[])).await?;
        Ok(Depth { queued, leased })
    }

    async fn notify(&self, job: &JobId) -> Result<()> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(CHANNEL).arg(job.as_str());
        publish.exec_async(&mut self.connection.clone()).await.map_err(|error| self.error(&error))
    }

    async fn wait_changed(&self, job: &JobId, timeout: Duration) -> Result<bool> {
        Ok(self.changes.wait(job.as_str(), timeout).await)
    }

    async fn ping(&self) -> Result<()> {
        let mut connection = self.connection.clone();
        let mut answer = redis::cmd("PING").exec_async(&mut connection).await;
        if answer.as_ref().is_err_and(|error| error.is_connection_dropped()) {
            answer = redis::cmd("PING").exec_async(&mut connection).await;
        }
        answer.map_err(|error| self.error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(parts: &[&str]) -> Vec<String> {
        parts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_reply_of_another_shape_is_refused() {
        let id = JobId::from_parts(1, 1);
        for reply in [
            &[][..],
            &["job"],
            &["job", "not an id", "1", "cpu", ""],
            &["job", id.as_str(), "1", "tpu", ""],
            &["none", "x", "0-0"],
            &["none", ""],
            &["what", "", ""],
        ] {
            assert_eq!(parse_attempt("w", Duration::ZERO, &strings(reply)), None, "{reply:?}");
        }
        let nothing = parse_attempt("w", Duration::ZERO, &strings(&["none", "", "0-0"]));
        assert_eq!(nothing, Some(Attempt::Nothing { wake_after: None, last_ids: vec!["0-0".into()] }));
    }

    #[test]
    fn a_standing_names_the_older_jobs_and_then_the_workers() {
        let id = JobId::from_parts(1, 1);
        let standing = parse_standing(&strings(&["1", id.as_str(), "a", "b"])).expect("well formed");
        assert_eq!((standing.older, standing.taken), (vec![id.clone()], strings(&["a", "b"])));
        assert_eq!(parse_standing(&strings(&["0"])), Some(Standing::default()));
        for reply in [&["2", id.as_str()][..], &["x"], &["-1"], &["1", "not an id"]] {
            assert_eq!(parse_standing(&strings(reply)), None, "{reply:?}");
        }
    }

    #[test]
    fn a_message_never_holds_the_password() {
        assert_eq!(without_credentials("redis://me:secret@host:1/0"), "redis://…@host:1/0");
        assert_eq!(without_credentials("redis://host:1"), "redis://host:1");
    }
}
