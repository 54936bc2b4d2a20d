//! The pool in a process of its own tests: one test, since its counts are the whole process's.

use tailor_torch::{drop_pool, resident_bytes, tensor_bytes, use_pool};
use tch::{Device, Kind, Tensor};

const MIB: i64 = 1 << 20;

fn bytes(mebibytes: i64) -> Tensor {
    Tensor::full([mebibytes * MIB], 7, (Kind::Uint8, Device::Cpu))
}

#[test]
fn blocks_are_used_again_and_what_waits_never_raises_the_peak() {
    use_pool();
    drop_pool();
    let before = tensor_bytes().now;
    let grown = |now: u64| now.saturating_sub(before) / MIB as u64;
    let kept = bytes(64);
    let place = {
        let first = bytes(32);
        assert!(grown(tensor_bytes().now) >= 96);
        first.data_ptr()
    };
    let again = bytes(31);
    assert_eq!(again.data_ptr(), place, "a block that is a little larger is taken");
    drop(again);
    // The heap would now have a hole of 32 MiB and ask for 64 more; here the hole goes back first.
    let other = bytes(60);
    let stats = tensor_bytes();
    assert!((124..160).contains(&grown(stats.peak)), "{stats:?}");
    drop((kept, other));
    let full = resident_bytes();
    drop_pool();
    assert!(resident_bytes() + 100 * MIB as u64 <= full, "{full} before, {} after", resident_bytes());
    let values = bytes(1);
    assert_eq!(i64::try_from(values.sum(Kind::Int64)).expect("a sum"), 7 * MIB, "fresh blocks hold what is put there");
}
