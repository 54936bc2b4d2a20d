//! The whole system from outside. `cargo xtask test` builds the programs and brings the peers; alone it runs with
//! `cargo build --workspace --bins && cargo nextest run -p tailor-tests`.

mod adapter_faults;
mod admission;
mod bad_input;
mod boundaries;
mod browser;
mod clock;
mod cluster;
mod crash_loop;
mod demo;
mod edges;
mod embedded;
mod evaluation;
mod golden;
mod house;
mod hub;
mod job_files;
mod kinds;
mod openai;
mod otlp;
mod overload;
mod pausing;
mod plan;
mod ranks;
mod readiness;
mod reflection;
mod residency;
mod rollout;
mod sentencepiece;
mod services;
mod serving_metrics;
mod sharing;
mod shipped;
mod store_and_queue_away;
mod support;
mod transfers;
