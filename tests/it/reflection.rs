//! A stock client that has never seen Tailor's protos walks the whole loop by server reflection.

use std::process::Command;

use crate::support::{Cluster, Family, repository};

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_python_client_walks_the_loop_by_reflection_alone() {
    let Some(python) = std::env::var_os("TAILOR_TEST_PYTHON").filter(|path| !path.is_empty()) else {
        return tailor_testkit::skipped("TAILOR_TEST_PYTHON does not name a Python with grpcio-reflection");
    };
    let Some(cluster) = Cluster::start().await else { return };
    let folder = Family::Llama.write(cluster.folder.path());
    let folder = folder.display().to_string();
    cluster.cli().text(&["base", "add", &folder, "--name", Family::Llama.base(), "--dtype", "f32"]);
    let rows = cluster.folder.join("rows.csv");
    std::fs::write(&rows, crate::support::rows::csv(60)).expect("write rows");
    let mut walk = Command::new(python);
    walk.arg(repository().join("tests/python/reflection_client.py")).arg(rows).arg(Family::Llama.base());
    for (_, url) in cluster.addresses.all() {
        walk.arg(url.trim_start_matches("http://"));
    }
    let done = walk.output().expect("run the client");
    let (output, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "the client failed:\n{output}\n{errors}");
    assert!(output.contains("\nwalked the loop"), "{output}");
}
