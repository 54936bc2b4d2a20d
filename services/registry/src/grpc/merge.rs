//! Merging on the wire: how far it is, then the base.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tailor_domain::{BaseName, Invalid, QuantCode};
use tailor_merge::Stage;
use tailor_pb::convert;
use tailor_pb::registry::merge_progress::Stage as WireStage;
use tailor_pb::registry::merge_response::What;
use tailor_pb::registry::{self as pb, MergeProgress, MergeRequest, MergeResponse, Merged};
use tailor_quant::Float;
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::merge::{At, Heard, MergedBase, Merging};
use crate::{Registry, Result};

pub type MergeStream = BoxStream<'static, Result<MergeResponse, Status>>;

/// Messages that wait for a slow caller; of the progress what is more is left out.
const WAITING: usize = 64;

pub fn merge(registry: &Registry, request: MergeRequest) -> Result<MergeStream> {
    let wanted = wanted(request)?;
    let (to, messages) = mpsc::channel(WAITING);
    let registry = registry.clone();
    tokio::spawn(async move {
        let progress = to.clone();
        let heard: Heard = Arc::new(move |at, done, of| {
            let progress_message = MergeProgress { stage: stage(at).into(), done, of };
            // Full: the caller is slow, and hears of the next one.
            let _ = progress.try_send(Ok(MergeResponse { what: Some(What::Progress(progress_message)) }));
            !progress.is_closed()
        });
        let message = registry
            .merge(&wanted, &heard)
            .await
            .map(|merged| MergeResponse { what: Some(What::Merged(wire(&merged))) });
        let _ = to.send(message.map_err(|error| status(&error))).await;
    });
    Ok(ReceiverStream::new(messages).boxed())
}

fn wanted(request: MergeRequest) -> Result<Merging, Invalid> {
    let dtype = match request.dtype.as_str() {
        "" => None,
        "bf16" => Some(Float::Bf16),
        "f32" => Some(Float::F32),
        other => return Err(Invalid::new("dtype", format!("{other:?} is neither bf16 nor f32"))),
    };
    let quant = match request.quant.as_str() {
        "" => QuantCode::None,
        code => convert::quant_code(code)?,
    };
    Ok(Merging { from: request.reference.parse()?, name: BaseName::try_new(request.name)?, dtype, quant })
}

fn stage(at: At) -> WireStage {
    match at {
        At::Fetching => WireStage::Fetching,
        At::Working(Stage::Merging) => WireStage::Merging,
        At::Working(Stage::Quantising) => WireStage::Quantising,
        At::Working(Stage::Comparing) => WireStage::Comparing,
        At::Storing => WireStage::Storing,
    }
}

fn wire(MergedBase { manifest, report }: &MergedBase) -> Merged {
    let base = Some(pb::Base::from(manifest));
    let Some(report) = report else { return Merged { base, ..Merged::default() } };
    let all = report.difference();
    Merged {
        base,
        created: true,
        tensors: report.tensors as u64,
        tensors_changed: report.changed.len() as u64,
        untied: report.untied,
        update_rms: all.update_rms(),
        error_rms: all.error_rms(),
        update_survives: all.survives(),
    }
}
