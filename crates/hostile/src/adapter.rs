//! `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;

use tailor_peft::{Adapter, AdapterConfig, BaseShapes, Limits, LinearShape};

use crate::{Refused, parts, refused};

/// Paths as bases have them.
const PATHS: [&str; 4] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "encoder.block.4.layer.1.DenseReluDense.wi_0",
    "lm_head",
];

/// The config and the weights.
pub fn adapter_config(input: &[u8]) -> Refused {
    let [text, weights] = parts(input);
    let config = AdapterConfig::parse(text).map_err(refused)?;
    let again = AdapterConfig::parse(&config.to_json()).expect("our own output");
    assert!(again.same_settings(&config), "the settings are not what was written");
    for path in PATHS {
        assert!((1..=1024).contains(&config.rank_for(path)), "a rank that the config may not have");
        assert!(config.scale_for(path).is_finite());
        assert_eq!(config.targets(path), again.targets(path));
        config.saves_whole(path);
    }
    assert!(config.portability_notes().iter().all(|note| note.len() < 200));

    let adapter = Adapter::from_bytes(text, weights, &Limits::default()).map_err(refused)?;
    let written = adapter.weights_to_bytes().map_err(refused)?;
    let again = Adapter::from_bytes(&adapter.config_to_bytes(), &written, &Limits::default()).expect("our own output");
    assert_eq!(again.tensors(), adapter.tensors(), "the tensors are not what was written");
    let linears = PATHS.map(|path| (path.to_owned(), LinearShape { in_features: 4, out_features: 4 }));
    adapter.check_against(&BaseShapes::new(linears.into(), BTreeMap::new())).map_err(refused)
}
