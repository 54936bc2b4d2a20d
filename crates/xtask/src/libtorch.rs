//! `cargo xtask setup`: libtorch in a cache outside the clone, and the clone's `.libtorch` as a link to it.
//!
//! The set is unpacked beside its place and moved there when every file is checked and the marker written, so a folder
//! with the right marker is complete. A lock file lets several set-ups run at once: one works, the others wait.

mod download;
mod index;
pub mod nvrtc;
mod progress;
mod record;
mod set;
#[cfg(test)]
mod testserver;
#[cfg(test)]
mod testzip;
mod wheel;
mod zip;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, ensure};

use crate::lock::Lock;
use crate::workspace;
use download::{Remote, disk};

const MARKER: &str = "tailor-set.txt";
const LINK: &str = ".libtorch";
const OVERRIDE: &str = "TAILOR_LIBTORCH";

/// Makes sure that `.libtorch` leads to a complete libtorch of the right version, and answers where that is.
pub fn setup() -> Result<PathBuf> {
    let link = workspace::root().join(LINK);
    if let Some(own) = env::var_os(OVERRIDE).map(PathBuf::from) {
        let own = own.canonicalize().with_context(|| format!("{OVERRIDE} is {}, which is not there", own.display()))?;
        check(&own).with_context(|| format!("{OVERRIDE} is {}", own.display()))?;
        set_link(&link, &own)?;
        return Ok(own);
    }
    let cache = workspace::cache()?;
    let place = cache.join(format!("libtorch-{}-cpu", set::VERSION));
    if let Some(own) = link.canonicalize().ok().filter(|target| !target.starts_with(&cache) && check(target).is_ok()) {
        println!("libtorch: your own is linked; remove {} to go back to Tailor's", link.display());
        return Ok(own);
    }
    if !is_complete(&place) {
        fetch_under_lock(&cache, &place)?;
    }
    set_link(&link, &place)?;
    Ok(place)
}

fn is_complete(place: &Path) -> bool {
    fs::read_to_string(place.join(MARKER)).is_ok_and(|marker| marker == set::identity())
}

fn fetch_under_lock(cache: &Path, place: &Path) -> Result<()> {
    let supported = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    ensure!(
        supported,
        "no libtorch is pinned for {} on {}: unpack libtorch {} yourself and name its folder by {OVERRIDE}",
        env::consts::OS,
        env::consts::ARCH,
        set::VERSION
    );
    let downloads = cache.join("downloads");
    fs::create_dir_all(&downloads).map_err(|error| disk(&downloads, error))?;
    let _lock = Lock::take(&cache.join(format!("libtorch-{}-cpu.lock", set::VERSION)), "libtorch")?;
    if is_complete(place) {
        return Ok(());
    }
    fetch(&downloads, place)
}

fn fetch(downloads: &Path, place: &Path) -> Result<()> {
    let index = index::configured();
    println!("libtorch {} (CPU): fetching 135 MB from {index} into {}", set::VERSION, place.display());
    let agent = download::agent();
    let unpacked = place.with_extension("partial");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(|error| disk(&unpacked, error))?;
    }
    for wheel in &set::WHEELS {
        let url = index::find(&agent, &index, wheel.project, wheel.filename)?;
        let mut remote = Remote::new(&agent, url, wheel.filename, wheel.size_bytes, downloads);
        wheel::install(&mut remote, wheel, &unpacked)?;
    }
    make_stub(&unpacked.join("lib"))?;
    let build_version = unpacked.join("build-version");
    fs::write(&build_version, set::VERSION).map_err(|error| disk(&build_version, error))?;
    let marker = unpacked.join(MARKER);
    fs::write(&marker, set::identity()).map_err(|error| disk(&marker, error))?;
    move_into_place(&unpacked, place)?;
    println!("libtorch {} (CPU): checked and ready", set::VERSION);
    Ok(())
}

/// The wheel's own `libtorch.so` NEEDs the CUDA libraries; programs link this one, which needs only the CPU's.
fn make_stub(lib: &Path) -> Result<()> {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let stub = lib.join("libtorch.so");
    // Old-style RPATH, which also holds for what the libraries themselves load.
    let linker = "-Wl,-soname,libtorch.so,--no-as-needed,--allow-shlib-undefined,--disable-new-dtags,-rpath,$ORIGIN";
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-x", "c", "/dev/null", "-x", "none", linker, "-L"]).arg(lib);
    command.args(["-ltorch_cpu", "-lc10", "-o"]).arg(&stub);
    let output = command.output().with_context(|| {
        format!(
            "cannot run the C compiler {compiler}: install one (Debian: apt-get install build-essential), or set CC"
        )
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{compiler} cannot link {}:\n{said}", stub.display());
    Ok(())
}

/// A folder cannot replace another in one step, so an older set is moved aside first.
fn move_into_place(from: &Path, to: &Path) -> Result<()> {
    let aside = to.with_extension(format!("old-{}", process::id()));
    if to.exists() {
        fs::rename(to, &aside).map_err(|error| disk(&aside, error))?;
    }
    fs::rename(from, to).map_err(|error| disk(to, error))?;
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|error| disk(&aside, error))?;
    }
    Ok(())
}

/// Points the link at a folder in one step; a folder that stands where the link should be is the user's to move.
fn set_link(link: &Path, target: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|current| current == target) {
        return Ok(());
    }
    let occupied = fs::symlink_metadata(link).is_ok_and(|metadata| !metadata.is_symlink());
    ensure!(!occupied, "{} is not a link: move it away, then run the same command again", link.display());
    let fresh = link.with_extension(format!("new-{}", process::id()));
    let made = std::os::unix::fs::symlink(target, &fresh).and_then(|()| fs::rename(&fresh, link));
    made.map_err(|error| disk(link, error))?;
    println!("libtorch: {} -> {}", link.display(), target.display());
    Ok(())
}

/// Whether a folder that the user names holds what tch binds.
fn check(libtorch: &Path) -> Result<()> {
    for file in
        ["lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libc10.so", "include/torch/csrc/api/include/torch/torch.h"]
    {
        ensure!(libtorch.join(file).exists(), "it has no {file}");
    }
    let headers = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];
    let texts = headers.iter().filter_map(|header| fs::read_to_string(libtorch.join(header)).ok());
    let found = texts.filter_map(|text| version_in(&text)).next().context("its headers name no version")?;
    ensure!(found == set::VERSION, "it is libtorch {found}, and Tailor needs {}", set::VERSION);
    Ok(())
}

/// The version that `torch/version.h` defines.
fn version_in(header: &str) -> Option<String> {
    let part = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")))?;
        line.trim().parse::<u32>().ok()
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_header() {
        let header = "#pragma once\n#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";
        assert_eq!(version_in(header).as_deref(), Some("2.11.0"));
        assert_eq!(version_in("#include <torch/headeronly/version.h>"), None);
    }

    #[test]
    fn folder_without_libtorch_is_refused_by_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check(folder.path()).unwrap_err().to_string().contains("lib/libtorch_cpu.so"));
    }

    #[test]
    fn link_moves_to_a_new_target_and_leaves_a_real_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join(LINK);
        for target in ["one", "two", "two"] {
            set_link(&link, &folder.path().join(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), folder.path().join(target));
        }
        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        assert!(set_link(&link, &folder.path().join("one")).unwrap_err().to_string().contains("is not a link"));
    }

    #[test]
    fn marker_of_another_set_does_not_count_as_complete() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_complete(folder.path()));
        fs::write(folder.path().join(MARKER), "layout 0\n").unwrap();
        assert!(!is_complete(folder.path()));
        fs::write(folder.path().join(MARKER), set::identity()).unwrap();
        assert!(is_complete(folder.path()));
    }

    #[test]
    fn newer_set_takes_the_place_of_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("set.partial"), folder.path().join("set"));
        for content in ["old", "new"] {
            fs::create_dir(&from).unwrap();
            fs::write(from.join("file"), content).unwrap();
            move_into_place(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(to.join("file")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
