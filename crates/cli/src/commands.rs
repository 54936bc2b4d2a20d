//! One command a file.

pub mod adapter;
pub mod audit;
pub mod base;
pub mod blobs;
pub mod dataset;
pub mod demo;
pub mod generate;
pub mod gguf;
pub mod house;
pub mod hub;
pub mod job;
pub mod lowrank;
pub mod merge;
mod oci;
pub mod plan;
pub mod policy;
pub mod rollout;
pub mod score;
pub mod train;
mod transfer;
pub mod up;
