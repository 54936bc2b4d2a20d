//! What several tests begin with.

use tailor_domain::{AdapterName, BaseName, DatasetName, JobSpec, Recipe, Version};

pub fn spec() -> JobSpec {
    JobSpec {
        base: BaseName::try_new("base").expect("a name"),
        dataset: DatasetName::try_new("rows").expect("a name"),
        dataset_version: Version(1),
        adapter: AdapterName::try_new("adapter").expect("a name"),
        recipe: Recipe::default(),
        traceparent: None,
        created_at_ms: 0,
    }
}
