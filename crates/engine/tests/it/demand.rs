//! What a base takes, told before it is loaded.

use tailor_engine::{EngineOptions, demand, device_bytes};
use tailor_testkit::TempDir;

use crate::TinyBase;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_base_will_take_is_known_before_it_is_loaded() {
    for tiny in TinyBase::all() {
        for kv_bytes in [1, 1 << 20, 4 << 30] {
            let options = EngineOptions { kv_bytes, max_context: 512, ..EngineOptions::default() };
            let told = demand(&tiny.path(), &options).expect("a base");
            let info = tiny.engine(options).await.info();
            // The file has a header beside the weights.
            assert!(told.abs_diff(info.kv_bytes + info.resident_bytes) < 64 << 10, "{told} for {info:?}");
        }
    }
    assert!(device_bytes().is_some_and(|bytes| bytes > 1 << 20));
    let empty = TempDir::new();
    let refused = demand(empty.path(), &EngineOptions::default()).expect_err("no base").to_string();
    assert!(refused.contains("config.json"), "{refused}");
}
