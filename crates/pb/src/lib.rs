//! Generated gRPC code and conversions to and from the domain types, nothing else.

/// The generated modules, nested as the packages are: `tailor.<area>.v1`.
#[allow(clippy::all)]
mod generated {
    macro_rules! packages {
        ($($area:ident => $package:literal),* $(,)?) => {
            $(pub mod $area { pub mod v1 { tonic::include_proto!($package); } })*
        };
    }
    packages! {
        common => "tailor.common.v1",
        dataset => "tailor.dataset.v1",
        training => "tailor.training.v1",
        registry => "tailor.registry.v1",
        inference => "tailor.inference.v1",
    }
}

pub use generated::{
    common::v1 as common, dataset::v1 as dataset, inference::v1 as inference, registry::v1 as registry,
    training::v1 as training,
};

pub mod convert;

/// Every message and service of Tailor, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
