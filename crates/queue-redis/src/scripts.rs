//! The Lua scripts, each with the shared part in front, and the keys they work on.

use redis::{Script, ScriptInvocation};

use crate::{GPU_STREAM, STREAM};

/// In the order of `common.lua` and `calls.lua`. The braces keep all keys on one node of a cluster.
const KEYS: [&str; 8] = [
    STREAM,
    "{tailor}:entries",
    "{tailor}:deadlines",
    "{tailor}:leases",
    "{tailor}:epochs",
    "{tailor}:calls",
    "{tailor}:seats",
    GPU_STREAM,
];

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("lua/common.lua"), include_str!($file)))
    };
}

/// About ranks: with both shared parts in front.
macro_rules! rank_script {
    ($file:literal) => {
        Script::new(concat!(include_str!("lua/common.lua"), include_str!("lua/calls.lua"), include_str!($file)))
    };
}

pub(crate) struct Scripts {
    pub(crate) enqueue: Script,
    pub(crate) lease: Script,
    pub(crate) heartbeat: Script,
    pub(crate) ack: Script,
    pub(crate) release: Script,
    pub(crate) depth: Script,
    pub(crate) call: Script,
    pub(crate) hang_up: Script,
    pub(crate) open_calls: Script,
    pub(crate) take_seat: Script,
    pub(crate) keep_seat: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            enqueue: script!("lua/enqueue.lua"),
            lease: script!("lua/lease.lua"),
            heartbeat: script!("lua/heartbeat.lua"),
            ack: script!("lua/ack.lua"),
            release: script!("lua/release.lua"),
            depth: script!("lua/depth.lua"),
            call: rank_script!("lua/call.lua"),
            hang_up: rank_script!("lua/hang_up.lua"),
            open_calls: rank_script!("lua/open_calls.lua"),
            take_seat: rank_script!("lua/take_seat.lua"),
            keep_seat: rank_script!("lua/keep_seat.lua"),
        }
    }
}

/// The script with its keys and arguments, ready to be sent, more than once if need be.
pub(crate) fn call<'a>(script: &'a Script, arguments: &[&str]) -> ScriptInvocation<'a> {
    let mut invocation = script.prepare_invoke();
    for key in KEYS {
        invocation.key(key);
    }
    for argument in arguments {
        invocation.arg(*argument);
    }
    invocation
}
