//! The shipped folders, and a few steps of the loop that made them.

use std::path::{Path, PathBuf};

use tailor_bases::pretrain::pretrain;
use tailor_bases::recipe::Recipe;
use tailor_models::{Base, LoadOptions};

const LIMIT_BYTES: u64 = 8_000_000;

fn shipped(recipe: &Recipe) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bases").join(recipe.name)
}

fn recipes() -> [Recipe; 2] {
    [Recipe::tiny_t5().expect("t5"), Recipe::tiny_llama().expect("llama")]
}

#[test]
fn the_shipped_folders_are_small_and_load() {
    for recipe in recipes() {
        let folder = shipped(&recipe);
        let bytes: u64 = std::fs::read_dir(&folder)
            .expect("the shipped folder")
            .map(|file| file.expect("a file").metadata().expect("its size").len())
            .sum();
        assert!(bytes <= LIMIT_BYTES, "{} has {bytes} bytes", recipe.name);
        let base = Base::load(&folder, &LoadOptions::default()).expect("load");
        assert!(base.parameter_count() > 500_000);
    }
}

#[test]
fn the_shipped_tokenizers_and_configs_are_what_the_recipes_say() {
    for recipe in recipes() {
        let read = |name: &str| std::fs::read_to_string(shipped(&recipe).join(name)).expect("a file of the base");
        assert_eq!(read("tokenizer.json").trim_end(), recipe.tokenizer_json, "{}", recipe.name);
        let parsed = |name: &str| serde_json::from_str::<serde_json::Value>(&read(name)).expect("JSON");
        assert_eq!(parsed("tokenizer_config.json"), recipe.tokenizer_config);
        assert_eq!(parsed("generation_config.json"), recipe.generation_config);
        assert_eq!(parsed("config.json"), recipe.config);
    }
}

#[test]
fn a_few_steps_lower_the_loss_and_the_seed_decides_it() {
    tch::set_num_threads(1);
    for mut recipe in recipes() {
        recipe.batch = 8;
        let loss_after = |steps| pretrain(&recipe, steps, &mut |_| Ok(())).expect("pretrain").loss;
        let (one, forty) = (loss_after(1), loss_after(40));
        assert!(forty < one, "{}: {one} and then {forty}", recipe.name);
        assert_eq!(forty.to_bits(), loss_after(40).to_bits(), "{}", recipe.name);
    }
}
