//! What the CPU set of libtorch consists of, pinned.
//!
//! torch's wheel for Linux is built with CUDA; `libtorch_cpu.so` NEEDs the CUDA runtime and the profiling library, which
//! are small and run without a GPU. The versions are those that torch 2.11.0 requires (cuda-toolkit 13.0.2).

/// The version that tch 0.24 binds.
pub const VERSION: &str = "2.11.0";

/// Raised when what set-up makes from the wheels (layout, stub) changes.
const LAYOUT: &str = "1";

pub struct Wheel {
    pub project: &'static str,
    pub filename: &'static str,
    pub size_bytes: u64,
    /// Of the wheel's `*.dist-info/RECORD`, in hexadecimal.
    pub record_sha256: &'static str,
    pub picks: &'static [Pick],
}

/// A file or folder (its name ends in `/`) of a wheel, and where it goes in the set.
pub struct Pick {
    pub from: &'static str,
    pub to: &'static str,
}

pub const WHEELS: [Wheel; 3] = [
    Wheel {
        project: "nvidia-cuda-runtime",
        filename: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        size_bytes: 2_243_632,
        record_sha256: "34c7a65651597fd8a376b049b69bb26db399a9ea443a7a142ccd34f5a10f79c4",
        picks: &[Pick { from: "nvidia/cu13/lib/libcudart.so.13", to: "lib/libcudart.so.13" }],
    },
    Wheel {
        project: "nvidia-cuda-cupti",
        filename: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        size_bytes: 10_715_597,
        record_sha256: "f8ae8ddce85f8e319abac90e956bf45a572e31f4ff01af2d634f37aa3d78e3eb",
        picks: &[Pick { from: "nvidia/cu13/lib/libcupti.so.13", to: "lib/libcupti.so.13" }],
    },
    Wheel {
        project: "torch",
        filename: "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        size_bytes: 530_712_279,
        record_sha256: "64d76220aff1572ba2ee949e3c4e5633a21f7aa626c634ee1730609464777fc5",
        picks: &[
            Pick { from: "torch/include/", to: "include/" },
            Pick { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
            Pick { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
            Pick { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
        ],
    },
];

/// Names this set: a folder whose marker holds this text is complete and is this set, not an older one.
pub fn identity() -> String {
    let wheels = WHEELS.iter().map(|wheel| format!("{} {}\n", wheel.record_sha256, wheel.filename));
    format!("layout {LAYOUT}\n{}", wheels.collect::<String>())
}

impl Pick {
    /// Where a member goes, if this pick covers it.
    pub fn place(&self, member: &str) -> Option<String> {
        if !self.from.ends_with('/') {
            return (member == self.from).then(|| self.to.to_owned());
        }
        let rest = member.strip_prefix(self.from)?;
        (!rest.is_empty() && !rest.ends_with('/')).then(|| format!("{}{rest}", self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_pick_places_files_and_skips_folders() {
        let pick = Pick { from: "torch/include/", to: "include/" };
        assert_eq!(pick.place("torch/include/c10/util/Half.h").as_deref(), Some("include/c10/util/Half.h"));
        assert_eq!(pick.place("torch/include/"), None);
        assert_eq!(pick.place("torch/include/c10/"), None);
        assert_eq!(pick.place("torch/lib/libc10.so"), None);
    }

    #[test]
    fn file_pick_takes_no_file_of_a_similar_name() {
        let pick = Pick { from: "torch/lib/libc10.so", to: "lib/libc10.so" };
        assert_eq!(pick.place("torch/lib/libc10.so").as_deref(), Some("lib/libc10.so"));
        assert_eq!(pick.place("torch/lib/libc10.so.1"), None);
    }
}
