//! Following what an engine reports, for as long as the edge runs.

use std::sync::Arc;
use std::time::Duration;

use tailor_pb::inference::ReportRequest;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::member::{Member, SILENCE, silent};

/// Pause before an engine that is not there is called again.
const PAUSE: Duration = Duration::from_millis(250);

pub async fn follow(member: Arc<Member>, stop: CancellationToken) {
    let mut was_there = false;
    loop {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = listen(&member, &mut was_there) => outcome,
        };
        member.forget();
        if let Err(status) = outcome
            && std::mem::take(&mut was_there)
        {
            tracing::warn!(engine = member.url, problem = status.message(), "an engine is away");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn listen(member: &Member, was_there: &mut bool) -> Result<(), Status> {
    let hangs = |_| {
        member.is_silent();
        silent()
    };
    let mut client = member.engine();
    let mut reports =
        tokio::time::timeout(SILENCE, client.report(ReportRequest {})).await.map_err(hangs)??.into_inner();
    // What it held before is told anew.
    member.forget();
    while let Some(report) = tokio::time::timeout(SILENCE, reports.message()).await.map_err(hangs)?? {
        if !*was_there {
            tracing::info!(engine = member.url, serving = report.serving, "an engine is there");
            *was_there = true;
        }
        member.says(report);
    }
    Err(Status::unavailable("it has stopped"))
}
