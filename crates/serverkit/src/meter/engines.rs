//! What engines hold and do: the queue, the cache's blocks, bases, which adapters are where, loads and evictions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

/// Seconds that a load may take.
const LOAD: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// An engine at a moment; the counts are since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineReading {
    pub running: u64,
    pub waiting: u64,
    pub waiting_tokens: u64,
    pub kv_blocks: u64,
    pub kv_blocks_held: u64,
    pub steps: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub made_tokens: u64,
}

/// Adapters of a base in one tier at a moment.
#[derive(Debug, Clone)]
pub struct ResidentReading {
    pub base: String,
    /// `device`, or where else adapters are kept ready.
    pub tier: &'static str,
    pub adapters: u64,
    pub bytes: u64,
}

/// The instruments of a process' engines.
pub struct Engines {
    running: Gauge<u64>,
    waiting: Gauge<u64>,
    waiting_tokens: Gauge<u64>,
    kv_blocks: Gauge<u64>,
    steps: Counter<u64>,
    tokens: Counter<u64>,
    bases: Gauge<u64>,
    base_bytes: Gauge<u64>,
    base_evictions: Counter<u64>,
    resident: Gauge<u64>,
    resident_bytes: Gauge<u64>,
    loads: Histogram<f64>,
    evictions: Counter<u64>,
    /// What each engine, by its base's fingerprint, had counted when it was last read.
    before: Mutex<HashMap<String, EngineReading>>,
}

impl Default for Engines {
    fn default() -> Self {
        let meter = opentelemetry::global::meter("tailor");
        let gauge = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_gauge(name).with_unit(unit).with_description(about).build()
        };
        let counter = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(about).build()
        };
        Self {
            running: gauge("tailor.engine.running", "{request}", "Sequences that are being worked on."),
            waiting: gauge("tailor.engine.waiting", "{request}", "Requests that wait for the device."),
            waiting_tokens: gauge("tailor.engine.waiting_tokens", "{token}", "Tokens that those may come to."),
            kv_blocks: gauge("tailor.engine.kv_blocks", "{block}", "Blocks of the cache, held by a sequence or not."),
            steps: counter("tailor.engine.steps", "{step}", "Steps made."),
            tokens: counter("tailor.engine.tokens", "{token}", "Tokens computed, found in the cache, and made."),
            bases: gauge("tailor.bases.resident", "{base}", "Bases that are ready."),
            base_bytes: gauge("tailor.bases.bytes", "By", "Bytes of a base's weights, and of its keys and values."),
            base_evictions: counter("tailor.bases.evictions", "{base}", "Bases that were put away for others."),
            resident: gauge("tailor.adapters.resident", "{adapter}", "Adapters that are ready, by tier."),
            resident_bytes: gauge("tailor.adapters.bytes", "By", "Bytes that they take there."),
            loads: meter
                .f64_histogram("tailor.adapters.load.duration")
                .with_unit("s")
                .with_description("Loads of adapters into a tier, those that failed with error.type.")
                .with_boundaries(LOAD.to_vec())
                .build(),
            evictions: counter("tailor.adapters.evictions", "{adapter}", "Adapters that left a tier for others."),
            before: Mutex::default(),
        }
    }
}

impl Engines {
    /// Takes in what an engine holds and has done by now.
    pub fn read(&self, base: &str, fingerprint: &str, now: EngineReading) {
        let with = |more: Option<(&'static str, &'static str)>| {
            let mut attributes = vec![KeyValue::new("tailor.base", base.to_owned())];
            attributes.extend(more.map(|(key, value)| KeyValue::new(key, value)));
            attributes
        };
        let plain = with(None);
        self.running.record(now.running, &plain);
        self.waiting.record(now.waiting, &plain);
        self.waiting_tokens.record(now.waiting_tokens, &plain);
        let free = now.kv_blocks.saturating_sub(now.kv_blocks_held);
        for (state, blocks) in [("held", now.kv_blocks_held), ("free", free)] {
            self.kv_blocks.record(blocks, &with(Some(("tailor.state", state))));
        }
        let before = {
            let mut all = self.before.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(fingerprint.to_owned(), now).unwrap_or_default()
        };
        // An engine that was started anew counts from zero.
        let since = |now: u64, before: u64| if now >= before { now - before } else { now };
        self.steps.add(since(now.steps, before.steps), &plain);
        for (kind, now, before) in [
            ("input", now.prompt_tokens, before.prompt_tokens),
            ("cached", now.cached_tokens, before.cached_tokens),
            ("output", now.made_tokens, before.made_tokens),
        ] {
            self.tokens.add(since(now, before), &with(Some(("gen_ai.token.type", kind))));
        }
    }

    /// Takes in how many bases are ready, and their bytes by name; of one that has left, 0.
    pub fn bases(&self, count: u64, sizes: &BTreeMap<String, u64>) {
        self.bases.record(count, &[]);
        for (base, bytes) in sizes {
            self.base_bytes.record(*bytes, &[KeyValue::new("tailor.base", base.clone())]);
        }
    }

    /// A base was put away to make room.
    pub fn base_evicted(&self) {
        self.base_evictions.add(1, &[]);
    }

    /// Takes in what is resident. A tier that is empty is to be among it with zeros.
    pub fn resident(&self, readings: &[ResidentReading]) {
        for ResidentReading { base, tier, adapters, bytes } in readings {
            let attributes = [KeyValue::new("tailor.base", base.clone()), KeyValue::new("tailor.tier", *tier)];
            self.resident.record(*adapters, &attributes);
            self.resident_bytes.record(*bytes, &attributes);
        }
    }

    /// An adapter was loaded into a tier, or could not be; `error` is an error code's name.
    pub fn loaded(&self, tier: &'static str, took: Duration, error: Option<&'static str>) {
        let mut attributes = vec![KeyValue::new("tailor.tier", tier)];
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.loads.record(took.as_secs_f64(), &attributes);
    }

    /// An adapter left a tier to make room.
    pub fn evicted(&self, tier: &'static str) {
        self.evictions.add(1, &[KeyValue::new("tailor.tier", tier)]);
    }
}
