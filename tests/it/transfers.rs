//! Large files between the command line and the registry: what breaks off goes on where it ended, and a store that can
//! hands files out itself.

use std::process::Command;

use tailor_pb::registry;
use tailor_testkit::LlamaShape;

use crate::support::{Cluster, Family, Gate, Training, Up, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_base_whose_upload_is_cut_arrives_and_is_not_sent_twice() {
    let mut up = Up::start().await;
    let shape = LlamaShape { hidden: 256, layers: 6, feed_forward: 768, vocab: 8000, ..LlamaShape::default() };
    let folder = up.folder.join("large");
    std::fs::create_dir(&folder).expect("a folder");
    shape.write(&folder, 3).expect("writes");
    let small = Family::Llama.write(up.folder.path());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(small.join(file), folder.join(file)).expect("copies");
    }
    let port: u16 = up.addresses.registry.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let gate = Gate::before(port);
    let at = crate::support::clients::Addresses {
        registry: format!("http://127.0.0.1:{}", gate.port()),
        ..up.addresses.clone()
    };
    let cli = up.cli().at(&at);
    gate.cut_after(4 << 20);
    let added = cli.json(&["base", "add", &folder.display().to_string(), "--name", "large", "--dtype", "f32"]);
    let (size, sent) = (added["size_bytes"].as_u64().expect("a size"), gate.bytes());
    assert!(size > 8 << 20, "{size} bytes are enough to be cut");
    // A message is half a MiB; some are under way when the connection is cut.
    assert!(sent < size + (3 << 20), "{sent} bytes were sent of {size}");
    // And back: a merge brings the base's files down.
    up.addresses.upload("rows", rows::csv(60).as_bytes()).await.expect("rows uploaded");
    let job = Training { base: "large", dataset: "rows", adapter: "cut", steps: 1, key: "" };
    up.addresses.succeeded(&up.addresses.create(&job).await.id).await;
    let before = gate.bytes();
    gate.cut_after(3 << 20);
    cli.json(&["adapter", "merge", "cut@1", &up.folder.join("merged").display().to_string()]);
    let received = gate.bytes() - before;
    assert!(received > size && received < size + (4 << 20), "{received} bytes came down of {size}");
    let digest = added["files"][0]["digest"].as_str().expect("text").to_owned();
    let request = registry::SignDownloadRequest { digest, lifetime_ms: 0 };
    let refused = up.addresses.registry().sign_download(request).await.expect_err("a folder signs nothing");
    assert!(refused.message().contains("signs no addresses"), "{refused:?}");
    assert_eq!(up.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_upload_is_cut_arrive_and_are_not_sent_twice() {
    let mut up = Up::start().await;
    let file = up.folder.join("rows.csv");
    let row = |number: usize| format!("{number},{} {number},Right {number}.\n", "word ".repeat(800));
    let rows = format!("id,text,expected text\n{}", (0..2000).map(row).collect::<String>());
    let size = rows.len() as u64;
    assert!(size > 6 << 20, "{size} bytes are enough to be cut");
    std::fs::write(&file, rows).expect("writes");
    let port: u16 = up.addresses.dataset.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let gate = Gate::before(port);
    let at = crate::support::clients::Addresses {
        dataset: format!("http://127.0.0.1:{}", gate.port()),
        ..up.addresses.clone()
    };
    gate.cut_after(3 << 20);
    let pushed = up.cli().at(&at).json(&["dataset", "push", &file.display().to_string(), "--name", "cut"]);
    let sent = gate.bytes();
    assert_eq!((&pushed["created"], &pushed["version"]), (&true.into(), &1.into()), "{pushed}");
    assert!(sent > size && sent < size + (3 << 20), "{sent} bytes were sent of {size}");
    assert_eq!(up.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_hands_out_files_by_address() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.add_base_and_rows(Family::T5).await;
    let at = cluster.addresses.clone();
    let job = Training { base: Family::T5.base(), dataset: "rows", adapter: "signed", steps: 2, key: "" };
    at.succeeded(&at.create(&job).await.id).await;
    let request = registry::ResolveRequest { reference: "signed".into() };
    let version = at.registry().resolve(request).await.expect("a version").into_inner();
    let request = registry::SignDownloadRequest { digest: version.weights_digest.clone(), lifetime_ms: 60_000 };
    let url = at.registry().sign_download(request).await.expect("signed").into_inner().url;
    // No credential but the address.
    let fetched = Command::new("curl").args(["-sf", "--max-time", "20", &url]).output().expect("curl runs");
    assert!(fetched.status.success(), "{url}");
    assert_eq!(tailor_domain::Digest::of(&fetched.stdout).to_string(), version.weights_digest);
    cluster.store.shut();
}
