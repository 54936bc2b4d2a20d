//! Who may know whom, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::support::repository;

/// The workspace's packages.
struct Workspace(BTreeMap<String, Package>);

struct Package {
    /// Folder below the repository's root.
    folder: String,
    /// What it needs to be built, and what its tests need besides.
    built_with: BTreeSet<String>,
    tested_with: BTreeSet<String>,
}

impl Workspace {
    fn read() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
        let output = Command::new(cargo).args(arguments).current_dir(repository()).output().expect("run cargo");
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata as JSON");
        let root = repository().display().to_string();
        let packages = metadata["packages"].as_array().expect("packages").iter().map(|package| {
            let manifest = package["manifest_path"].as_str().expect("path of a manifest");
            let folder = manifest.trim_start_matches(&root).trim_matches('/').trim_end_matches("/Cargo.toml");
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let of = |tests: bool| {
                let chosen = dependencies.iter().filter(|found| (found["kind"] == "dev") == tests);
                chosen.map(|found| found["name"].as_str().expect("name").to_owned()).collect()
            };
            let package_name = package["name"].as_str().expect("name").to_owned();
            (package_name, Package { folder: folder.to_owned(), built_with: of(false), tested_with: of(true) })
        });
        Self(packages.collect())
    }

    /// Packages that name `dependency` in their manifest, tests included.
    fn users(&self, dependency: &str) -> BTreeSet<&str> {
        let uses =
            |package: &Package| package.built_with.contains(dependency) || package.tested_with.contains(dependency);
        self.0.iter().filter(|(_, package)| uses(package)).map(|(name, _)| name.as_str()).collect()
    }

    /// Everything that building and testing a package brings in, by way of the workspace's packages.
    fn reach(&self, name: &str) -> BTreeSet<&str> {
        let start = &self.0[name];
        let mut waiting: Vec<&str> = start.built_with.union(&start.tested_with).map(String::as_str).collect();
        let mut reached = BTreeSet::new();
        while let Some(next) = waiting.pop() {
            if reached.insert(next)
                && let Some(package) = self.0.get(next)
            {
                waiting.extend(package.built_with.iter().map(String::as_str));
            }
        }
        reached
    }

    fn in_folder(&self, folder: &str) -> impl Iterator<Item = &str> {
        let inside = move |package: &Package| package.folder.starts_with(folder);
        self.0.iter().filter(move |(_, package)| inside(package)).map(|(name, _)| name.as_str())
    }
}

#[track_caller]
fn only(users: &BTreeSet<&str>, allowed: &[&str], what: &str) {
    let others: Vec<_> = users.iter().filter(|user| !allowed.contains(user)).collect();
    assert!(others.is_empty(), "{others:?} may not depend on {what}; only {allowed:?} may");
}

#[test]
fn only_the_numerical_crates_know_libtorch() {
    let workspace = Workspace::read();
    let numerical = ["tailor-torch", "tailor-models", "tailor-train", "tailor-engine", "tailor-bases"];
    for library in ["tch", "torch-sys"] {
        only(&workspace.users(library), &numerical, library);
    }
    assert!(workspace.users("tch").contains("tailor-torch"), "the test sees dependencies at all");
}

#[test]
fn only_one_crate_knows_redis() {
    only(&Workspace::read().users("redis"), &["tailor-queue-redis"], "redis");
}

#[test]
fn only_one_crate_and_the_test_kit_know_the_object_store() {
    only(&Workspace::read().users("object_store"), &["tailor-blobs", "tailor-testkit"], "object_store");
}

#[test]
fn only_one_crate_fetches_from_a_hub() {
    only(&Workspace::read().users("reqwest"), &["tailor-hub"], "reqwest");
}

#[test]
fn only_one_crate_knows_how_signatures_are_made() {
    only(&Workspace::read().users("ed25519-dalek"), &["tailor-trust"], "ed25519-dalek");
}

#[test]
fn only_one_crate_paints() {
    for library in ["tiny-skia", "ttf-parser", "dejavu"] {
        only(&Workspace::read().users(library), &["tailor-plot"], library);
    }
}

#[test]
fn only_one_crate_follows_grammars() {
    only(&Workspace::read().users("llguidance"), &["tailor-constrain"], "llguidance");
}

#[test]
fn only_one_crate_and_the_tests_know_opentelemetry() {
    for library in ["opentelemetry", "opentelemetry_sdk", "opentelemetry-otlp"] {
        only(&Workspace::read().users(library), &["tailor-serverkit"], library);
    }
}

#[test]
fn the_domain_does_no_input_or_output() {
    let workspace = Workspace::read();
    let built_with: Vec<&str> = workspace.0["tailor-domain"].built_with.iter().map(String::as_str).collect();
    for io in ["tokio", "tonic", "reqwest", "tailor-blobs", "tailor-queue", "tailor-serverkit"] {
        assert!(!built_with.contains(&io), "tailor-domain depends on {io}");
    }
    assert!(!built_with.iter().any(|name| name.starts_with("tailor-")), "the domain is at the bottom: {built_with:?}");
}

#[test]
fn the_numerical_crates_know_no_grpc_and_no_runtime_of_services() {
    let workspace = Workspace::read();
    for name in
        ["text", "quant", "peft", "merge", "gguf", "plan", "plot", "tensorboard", "torch", "models", "train", "engine"]
    {
        let reached = workspace.reach(&format!("tailor-{name}"));
        for banned in ["tonic", "tailor-pb", "tailor-serverkit", "tailor-queue", "object_store"] {
            assert!(!workspace.0[&format!("tailor-{name}")].built_with.contains(banned), "{name} depends on {banned}");
        }
        assert!(!reached.contains("tailor-serverkit"), "{name} reaches the services' side: {reached:?}");
    }
}

#[test]
fn registry_and_dataset_are_built_and_tested_without_libtorch() {
    let workspace = Workspace::read();
    for name in ["tailor-registry", "tailor-dataset", "tailor-plan"] {
        let reached = workspace.reach(name);
        for library in ["tch", "torch-sys", "tailor-torch", "tailor-torch-link"] {
            assert!(!reached.contains(library), "{name} reaches {library}");
        }
    }
    assert!(workspace.reach("tailor-trainer").contains("tch"), "the trainer does, and the test would see it");
}

#[test]
fn crates_never_depend_on_services_but_the_command_line_does() {
    let workspace = Workspace::read();
    let services: BTreeSet<&str> = workspace.in_folder("services/").collect();
    assert_eq!(services, BTreeSet::from(["tailor-dataset", "tailor-gateway", "tailor-registry", "tailor-trainer"]));
    let command_line = workspace.in_folder("crates/cli").next().expect("the command line");
    for service in services {
        only(&workspace.users(service), &[command_line], service);
    }
}

#[test]
fn services_know_one_another_only_over_the_wire() {
    let workspace = Workspace::read();
    let services: BTreeSet<&str> = workspace.in_folder("services/").collect();
    for service in &services {
        let reached = workspace.reach(service);
        let others: Vec<_> = services.iter().filter(|other| reached.contains(**other)).collect();
        assert!(others.is_empty(), "{service} is linked with {others:?}");
    }
}

/// Doc tests are not run: what ends up with libtorch cannot have any, and the rest would have to be compiled once more. So no
/// example may look as if it were held to what it says.
#[test]
fn no_block_in_a_doc_comment_looks_like_a_tested_example() {
    let mut folders = ["crates", "services"].map(|name| repository().join(name)).to_vec();
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            if entry.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let source = std::fs::read_to_string(&entry).expect("a source file");
            let comments = source.lines().filter_map(|line| {
                let line = line.trim_start();
                line.strip_prefix("//!").or_else(|| line.strip_prefix("///")).map(str::trim)
            });
            // Every second fence closes.
            for fence in comments.filter(|line| line.starts_with("```")).step_by(2) {
                assert_eq!(fence, "```text", "{}", entry.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen} blocks seen");
}
