//! What a job would take: base, rows and trainers looked up, the arithmetic left to `tailor-plan`.

use tailor_blobs::Store;
use tailor_domain::{BaseManifest, BaseName, DatasetName, JobSpec, Recipe, Version};
use tailor_pb::{dataset, registry};
use tailor_plan::{Calibration, Device, DeviceKind, Plan, Question, Rows, Shape};

use crate::attempt::Clients;
use crate::calibrations::Calibrations;
use crate::error::{Error, Result};
use crate::jobs::NewJob;
use crate::journal::now_ms;
use crate::matching::class_of;
use crate::room::Footprint;

const CONFIG: &str = "config.json";

pub struct Planner<'a> {
    pub store: &'a Store,
    pub clients: &'a Clients,
}

/// What a plan is asked for, its names checked.
pub struct PlanRequest {
    pub base: BaseName,
    pub dataset: DatasetName,
    /// None: the latest.
    pub dataset_version: Option<Version>,
    pub recipe: Recipe,
    /// Beside those of the table.
    pub cards: Vec<Device>,
    pub price_per_hour: f64,
}

impl Planner<'_> {
    /// # Errors
    /// A setting outside its limits, or one that no trainer's device knows, unless cards are named to plan for; base or
    /// dataset are not there; a service or the store is away.
    pub async fn plan(&self, request: &PlanRequest) -> Result<Plan> {
        request.recipe.validate()?;
        let base = self.base(&request.base).await?;
        let version = request.dataset_version.map_or(0, |version| version.0);
        let rows = self.rows(&base, &request.dataset, version, &request.recipe).await?;
        let shape = self.shape(&base).await?;
        let trainers = self.trainers(&request.recipe).await?;
        if request.cards.is_empty() {
            check_device(&request.recipe, &trainers)?;
        }
        let cards: Vec<Device> = Device::cards().into_iter().chain(request.cards.iter().cloned()).collect();
        let (recipe, price_per_hour) = (&request.recipe, request.price_per_hour);
        ask(&base, &shape, recipe, rows, &trainers, &cards, price_per_hour)
    }

    /// Refuses a job that no trainer can hold, with what would fit.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`]; a setting that no trainer's device knows; as [`Self::plan`].
    pub async fn require_fit(&self, base: BaseManifest, new: &NewJob, version: u64) -> Result<()> {
        let trainers = self.trainers(&new.recipe).await?;
        if trainers.is_empty() {
            return Ok(());
        }
        check_device(&new.recipe, &trainers)?;
        let shape = self.shape(&base).await?;
        let rows = longest_allowed(&new.recipe);
        if ask(&base, &shape, &new.recipe, rows, &trainers, &[], 0.0)?.refusal().is_none() {
            return Ok(());
        }
        let rows = self.rows(&base, &new.dataset, version, &new.recipe).await?;
        match ask(&base, &shape, &new.recipe, rows, &trainers, &[], 0.0)?.refusal() {
            None => Ok(()),
            Some(refusal) => Err(Error::DoesNotFit(refusal)),
        }
    }

    /// What a job takes on a worker, as if every row were as long as is allowed.
    ///
    /// # Errors
    /// The base is not there; a service or the store is away.
    pub async fn footprint(&self, spec: &JobSpec, worker: &Device) -> Result<Footprint> {
        let base = self.base(&spec.base).await?;
        let shape = self.shape(&base).await?;
        let (recipe, code, dtype) = (&spec.recipe, base.quant, base.dtype.as_str());
        let rows = longest_allowed(recipe);
        let question =
            Question { shape: &shape, recipe, code, dtype, rows, trainers: &[], cards: &[], price_per_hour: 0.0 };
        let compute = tailor_plan::Compute::of(recipe.train.precision, dtype)?;
        Ok(Footprint { base: (base.fingerprint, compute), memory: tailor_plan::memory_on(&question, worker)? })
    }

    /// Whether this worker cannot hold a job, and another trainer that is there can.
    ///
    /// # Errors
    /// As [`Self::footprint`].
    pub async fn is_for_others(&self, spec: &JobSpec, worker: &Device) -> Result<bool> {
        let trainers = Calibrations::of(self.store).there(now_ms()).await?;
        if trainers.iter().all(|trainer| trainer.device == *worker) {
            return Ok(false);
        }
        let base = self.base(&spec.base).await?;
        let shape = self.shape(&base).await?;
        let recipe = &spec.recipe;
        let question = |rows: Rows| Question {
            shape: &shape,
            recipe,
            code: base.quant,
            dtype: base.dtype.as_str(),
            rows,
            trainers: &[],
            cards: &[],
            price_per_hour: 0.0,
        };
        // As when it was created: what was taken for its true rows is held to those.
        if fits(&question(longest_allowed(recipe)), worker)? {
            return Ok(false);
        }
        let rows = self.rows(&base, &spec.dataset, spec.dataset_version.0, recipe).await?;
        fits_others_only(&question(rows), worker, &trainers)
    }

    async fn base(&self, name: &BaseName) -> Result<BaseManifest> {
        let request = registry::GetBaseRequest { name: name.to_string() };
        let base = self.clients.registry().get_base(request).await.map_err(Error::service("registry"))?;
        Ok(BaseManifest::try_from(base.into_inner())?)
    }

    /// Those that are there; for what only a GPU can do also one that was.
    async fn trainers(&self, recipe: &Recipe) -> Result<Vec<Calibration>> {
        Calibrations::of(self.store).to_plan_for(class_of(recipe), now_ms()).await
    }

    async fn shape(&self, base: &BaseManifest) -> Result<Shape> {
        let missing = || tailor_plan::Error::Config(format!("base {} has no {CONFIG}", base.name));
        let file = base.file(CONFIG).ok_or_else(missing)?;
        Ok(Shape::parse(&self.store.get_blob(&file.digest).await?)?)
    }

    async fn rows(&self, base: &BaseManifest, name: &DatasetName, version: u64, recipe: &Recipe) -> Result<Rows> {
        let request = dataset::PrepareShardsRequest {
            name: name.to_string(),
            version,
            base: base.name.to_string(),
            max_tokens: recipe.train.max_tokens,
            loss_on: recipe.train.loss_on.to_string(),
            objective: recipe.train.objective.to_string(),
        };
        let shards = self.clients.dataset().prepare_shards(request).await.map_err(Error::service("dataset"))?;
        Ok(counted(&shards.into_inner(), recipe))
    }
}

/// Rows as they were tokenised.
pub fn counted(shards: &dataset::PrepareShardsResponse, recipe: &Recipe) -> Rows {
    // 0 stands for "not counted": then the longest that is allowed.
    let or_limit = |tokens: u64| if tokens == 0 { u64::from(recipe.train.max_tokens) } else { tokens };
    Rows {
        count: shards.train_rows,
        tokens: shards.train_tokens,
        longest: or_limit(shards.longest_row),
        longest_input: or_limit(shards.longest_input),
        longest_target: shards.longest_target,
        most_labels: or_limit(shards.most_in_loss),
    }
}

/// As if every row were as long as is allowed: what fits then fits, and nothing need be tokenised to know it.
fn longest_allowed(recipe: &Recipe) -> Rows {
    let longest = u64::from(recipe.train.max_tokens);
    Rows {
        count: u64::from(recipe.train.batch_rows),
        tokens: longest,
        longest,
        longest_input: longest,
        longest_target: longest,
        most_labels: longest,
    }
}

/// What only a GPU can do is asked of GPUs.
fn check_device(recipe: &Recipe, trainers: &[Calibration]) -> Result<()> {
    let is_gpu = |trainer: &Calibration| trainer.device.kind == DeviceKind::Gpu;
    let has_gpu = trainers.is_empty() || trainers.iter().any(is_gpu);
    Ok(recipe.train.check_device(has_gpu)?)
}

fn fits(question: &Question<'_>, device: &Device) -> Result<bool> {
    let is_able = question.recipe.train.check_device(device.kind == DeviceKind::Gpu).is_ok();
    Ok(is_able && tailor_plan::memory_on(question, device)?.total() <= device.memory_bytes)
}

fn fits_others_only(question: &Question<'_>, worker: &Device, trainers: &[Calibration]) -> Result<bool> {
    if fits(question, worker)? {
        return Ok(false);
    }
    for trainer in trainers {
        if fits(question, &trainer.device)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ask(
    base: &BaseManifest,
    shape: &Shape,
    recipe: &Recipe,
    rows: Rows,
    trainers: &[Calibration],
    cards: &[Device],
    price_per_hour: f64,
) -> Result<Plan> {
    let (code, dtype) = (base.quant, base.dtype.as_str());
    Ok(tailor_plan::plan(&Question { shape, recipe, code, dtype, rows, trainers, cards, price_per_hour })?)
}

#[cfg(test)]
mod tests {
    use tailor_domain::QuantCode;
    use tailor_domain::spec::{Checkpointing, Optimizer};

    use super::*;

    fn trainer(device: Device) -> Calibration {
        Calibration { device, threads: 2, rates: Default::default(), measured_at_ms: 0 }
    }

    #[test]
    fn a_worker_leaves_to_others_what_it_cannot_hold_if_they_can() {
        let config = r#"{"model_type":"llama","hidden_size":1024,"intermediate_size":2816,"num_hidden_layers":12,
            "num_attention_heads":16,"num_key_value_heads":16,"vocab_size":32000}"#;
        let shape = Shape::parse(config.as_bytes()).expect("a known family");
        let (small, large) = (Device::cpu("small", 1 << 20, true), Device::gpu("large", 1 << 40));
        let is_left = |recipe: &Recipe, worker: &Device, others: &[&Device]| {
            let question = Question {
                shape: &shape,
                recipe,
                code: QuantCode::Nf4,
                dtype: "bf16",
                rows: longest_allowed(recipe),
                trainers: &[],
                cards: &[],
                price_per_hour: 0.0,
            };
            let others: Vec<Calibration> = others.iter().map(|device| trainer((*device).clone())).collect();
            fits_others_only(&question, worker, &others).expect("planned")
        };
        let plain = Recipe::default();
        assert!(is_left(&plain, &small, &[&small, &large]));
        assert!(!is_left(&plain, &small, &[&small]), "nobody can hold it: whoever has it tries");
        assert!(!is_left(&plain, &large, &[&small, &large]), "it fits here");
        let mut paged = Recipe::default();
        paged.train.optimizer = Optimizer::PagedAdamW;
        let roomy = Device::cpu("a host", 1 << 40, true);
        assert!(is_left(&paged, &roomy, &[&roomy, &large]), "only a GPU pages");
    }

    #[test]
    fn what_only_a_gpu_can_do_is_refused_where_all_trainers_are_cpus() {
        let (cpu, gpu) = (trainer(Device::cpu("a host", 1 << 40, true)), trainer(Device::gpu("a card", 1 << 35)));
        let mut aside = Recipe::default();
        aside.train.checkpointing = Checkpointing::LayersOnHost;
        let mut paged = Recipe::default();
        paged.train.optimizer = Optimizer::PagedAdamW;
        for (recipe, remedy) in [(&aside, "take layers"), (&paged, "take adamw")] {
            let refused = check_device(recipe, std::slice::from_ref(&cpu)).expect_err("all are CPUs").to_string();
            assert!(refused.contains(remedy), "{refused}");
            check_device(recipe, &[cpu.clone(), gpu.clone()]).expect("one can");
            check_device(recipe, &[]).expect("nobody has said what there is");
        }
        check_device(&Recipe::default(), &[cpu]).expect("any can");
    }
}
