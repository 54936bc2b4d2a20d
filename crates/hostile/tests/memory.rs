//! What a hostile file may take of the heap: a multiple of its own size, and a constant. JSON in memory is larger than on
//! disk: of `0,` two bytes become a number of 8 or a value of 72, and a list that grows is there twice for a moment. What
//! is parsed into values is therefore bounded in bytes by its parser (1 MiB of adapter config, 8 million values of a
//! tokenizer). Mapped files and stacks are no part of this.
//!
//! Alone in its process: it counts every allocation there is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tailor_hostile::{TARGETS, Target};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn taken(bytes: usize) {
    PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; the counts are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promise is ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: as above. Untouched zeros count as if they were memory.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// Bytes for each byte of the file, and besides.
fn allowance(target: &str) -> (usize, usize) {
    match target {
        "safetensors" | "index" | "quant_state" => (64, MIB),
        // Four fields of patterns with 4 MiB each, and what the engine of regular expressions keeps beside them.
        "adapter_config" => (128, 64 * MIB),
        "tokenizer_config" => (128, 16 * MIB),
        // Each letter of a piece may be where two others join. All merges may have 16 MiB of text, and are there as values,
        // as JSON and as the library reads them, some eight times in all.
        "sentencepiece" => (1024, 128 * MIB),
        // What the fuel is worth, and the text of a value while it is made.
        "chat_template" => (128, 128 * MIB),
        other => panic!("no allowance for {other}"),
    }
}

fn peak_of(target: &Target, input: &[u8]) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let _ = (target.run)(input);
    PEAK.load(Relaxed) - before
}

fn check(target: &Target, name: &str, input: &[u8]) {
    let (multiple, constant) = allowance(target.name);
    let (peak, limit) = (peak_of(target, input), multiple * input.len() + constant);
    assert!(peak <= limit, "{}: {name}: {peak} bytes for a file of {}; {limit} are allowed", target.name, input.len());
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target")
}

/// One test, since a second would be counted too.
#[test]
fn no_file_takes_more_than_a_multiple_of_its_size() {
    // The first panic that is caught loads the symbols for its trace.
    std::panic::set_hook(Box::new(|_| {}));
    for target in &TARGETS {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            let path = entry.expect("an entry").path();
            check(target, &path.display().to_string(), &std::fs::read(&path).expect("an input"));
        }
    }

    // Files that are large for their kind, of what becomes largest in memory.
    let many = "0,".repeat(MIB / 4);
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{many}0],"data_offsets":[0,0]}}}}"#);
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    check(target("safetensors"), "a shape of many sides", &file);
    let tensors: Vec<_> =
        (0..10_000).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let header = format!("{{{}}}", tensors.join(","));
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    check(target("safetensors"), "many tensors", &file);
    let map: Vec<_> = (0..20_000).map(|i| format!(r#""{i}":"a.safetensors""#)).collect();
    check(target("index"), "many names", format!(r#"{{"weight_map":{{{}}}}}"#, map.join(",")).as_bytes());
    check(target("adapter_config"), "a long list", format!(r#"{{"peft_type":"LORA","x":[{many}0]}}"#).as_bytes());
    let patterns: Vec<_> = (0..4096).map(|i| format!(r#""model.layers.{i}.self_attn.q_proj":1"#)).collect();
    let config =
        format!(r#"{{"peft_type":"LORA","target_modules":["q_proj"],"rank_pattern":{{{}}}}}"#, patterns.join(","));
    check(target("adapter_config"), "many paths", config.as_bytes());
    let patterns = |count: usize| (0..count).map(|i| format!(r#""[a-z_]*{i}x{{1,9}}""#)).collect::<Vec<_>>();
    let config = format!(
        r#"{{"peft_type":"LORA","target_modules":["q_proj"],"modules_to_save":[{}],"rank_pattern":{{{}:1}},
            "alpha_pattern":{{{}:1}}}}"#,
        patterns(400).join(","),
        patterns(400).join(":1,"),
        patterns(400).join(":1,")
    );
    check(target("adapter_config"), "many patterns", config.as_bytes());
    let model = |pieces: &[String]| -> Vec<u8> {
        let length = |length: usize| [length as u8 | 0x80, (length >> 7) as u8];
        let piece = |text: &String| {
            let [outer, inner] = [text.len() + 3, text.len()].map(length);
            [&[0x0a][..], &outer, &[0x0a], &inner, text.as_bytes()].concat()
        };
        let pieces: Vec<_> = pieces.iter().flat_map(piece).collect();
        [&[0xff; 4], &pieces[..], &[0x12, 0x02, 0x18, 0x02]].concat()
    };
    // The most that is converted, and what is refused for its merges.
    for longest in [365, 512] {
        let texts: Vec<_> = (1..=longest).map(|count| "a".repeat(count)).collect();
        check(target("sentencepiece"), "pieces of one letter", &model(&texts));
    }
    let texts: Vec<_> = (1..14).flat_map(|size| (0..1 << size).map(move |bits| format!("{bits:0size$b}"))).collect();
    check(target("sentencepiece"), "pieces of two letters", &model(&texts));
    let texts: Vec<_> = (0..20_000).map(|i| i.to_string()).collect();
    check(target("sentencepiece"), "many pieces", &model(&texts));
    for part in ["normalizer", "model", "added_tokens", "unknown"] {
        let file = format!(r#"{{"version":"1.0","{part}":[{many}0]}}"#);
        check(target("tokenizer_config"), part, file.as_bytes());
    }
}
