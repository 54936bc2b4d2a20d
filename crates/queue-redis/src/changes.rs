//! News that a job's log grew: one subscription per process, handed on to whoever waits.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// One channel for all jobs; the message is the job's id.
pub(crate) const CHANNEL: &str = "{tailor}:changed";
/// News kept for a slow waiter; one that falls further behind is simply woken.
const NEWS_KEPT: usize = 256;
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(1);

/// The subscription; ends when dropped.
pub(crate) struct Changes {
    news: broadcast::Sender<Arc<str>>,
    task: JoinHandle<()>,
}

impl Changes {
    pub(crate) fn listen(client: redis::Client) -> Self {
        let news = broadcast::Sender::new(NEWS_KEPT);
        let task = tokio::spawn(hand_on(client, news.clone()));
        Self { news, task }
    }

    /// Waits for news of this job; says whether there may have been some.
    pub(crate) async fn wait(&self, job: &str, timeout: Duration) -> bool {
        let mut news = self.news.subscribe();
        let told = async {
            loop {
                match news.recv().await {
                    Ok(changed) if *changed == *job => return true,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return true,
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
        };
        tokio::time::timeout(timeout, told).await.unwrap_or(false)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hand_on(client: redis::Client, news: broadcast::Sender<Arc<str>>) {
    loop {
        if let Err(error) = hand_on_until_disconnected(&client, &news).await {
            // News are hints, and readers poll anyway: nothing is lost but a moment.
            tracing::debug!(%error, "the subscription to job news is down; trying again");
        }
        tokio::time::sleep(RESUBSCRIBE_AFTER).await;
    }
}

async fn hand_on_until_disconnected(
    client: &redis::Client,
    news: &broadcast::Sender<Arc<str>>,
) -> redis::RedisResult<()> {
    let mut subscription = client.get_async_pubsub().await?;
    subscription.subscribe(CHANNEL).await?;
    let mut messages = subscription.on_message();
    while let Some(message) = messages.next().await {
        let job: String = message.get_payload()?;
        // An error only says that nobody waits.
        let _ = news.send(job.into());
    }
    Ok(())
}
