//! The last word when something fails: what, and what to do.

use std::process::ExitCode;

use tonic::{Code, Status};

use crate::output::Output;

/// `EX_USAGE` of sysexits.h: clap's own 2 would say "try this again" to a script.
const USAGE: u8 = 64;

/// Prints what is wrong with the words of the call; or the help or version that was asked for.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        error.exit();
    }
    if std::env::args().any(|argument| argument == "--json") {
        let message = error.render().to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message).trim_end();
        eprintln!("{}", serde_json::json!({ "error": { "code": "USAGE", "message": message } }));
    } else if error.print().is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::from(USAGE)
}

/// Prints an error and returns the exit code: 1 for what can be corrected, 2 for what can be tried again.
pub fn report(output: &Output, error: &anyhow::Error) -> ExitCode {
    let status = error.downcast_ref::<Status>();
    let hub = error.downcast_ref::<tailor_hub::Error>().map(|error| tailor_serverkit::status::grpc_code(error.code()));
    // What the service would refuse was refused before it was asked.
    let invalid = error.downcast_ref::<tailor_domain::Invalid>().map(|_| Code::InvalidArgument);
    let code = status.map(Status::code).or(hub).or(invalid);
    let message = match status {
        Some(status) => said(status),
        None => format!("{error:#}"),
    };
    if output.json {
        eprintln!("{}", serde_json::json!({ "error": { "code": code.map_or("ERROR", name), "message": message } }));
    } else {
        eprintln!("{} {message}", console::style("error:").red().bold().for_stderr());
    }
    match code {
        Some(Code::Unavailable | Code::Aborted | Code::ResourceExhausted | Code::DeadlineExceeded) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn said(status: &Status) -> String {
    let nobody = status.code() == Code::Unavailable && status.message().contains("tcp connect error")
        || status.message() == "transport error";
    if nobody {
        return "no Tailor answers there; start one with `tailor up`, or point TAILOR_DATASET_URL, TAILOR_TRAINER_URL, \
                TAILOR_REGISTRY_URL and TAILOR_GATEWAY_URL at a running one"
            .into();
    }
    status.message().to_owned()
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
