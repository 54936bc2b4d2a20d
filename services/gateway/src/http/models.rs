//! `/v1/models`: every base, and every adapter version that an alias or its newest number names, under each of its names.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tailor_domain::rollout::Caller;
use tailor_domain::{BaseName, ErrorCode};
use tailor_pb::inference as pb;

use super::Http;
use super::error::ApiError;
use super::extract::Name;
use crate::catalog;
use crate::error::{Error, Result};
use crate::models::of_base;
use crate::rollout::Choice;

/// What a model's name is made of, as errors call it.
const PARTS: [&str; 4] = ["base", "adapter", "version", "alias"];

pub async fn list(State(http): State<Http>) -> Result<Json<Value>, ApiError> {
    let listed = catalog::list(http.models()).await?;
    let data: Vec<Value> = listed.iter().flat_map(cards).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

/// By the names that a request may use, listed or not: a version that no alias names any more still answers.
pub async fn retrieve(State(http): State<Http>, Name(model): Name) -> Result<Json<Value>, ApiError> {
    let wanted = model.strip_prefix("ft:").unwrap_or(&model);
    let found = match names(wanted) {
        (base, Some(adapter)) => version(&http, wanted, base, adapter).await,
        (name, None) if name.contains('@') => version(&http, wanted, "", name).await,
        (name, None) => match base(&http, name).await {
            Err(error) if error.code() == ErrorCode::NotFound => version(&http, wanted, "", name).await,
            found => found,
        },
    };
    found.map(Json).map_err(|error| refused(&model, error))
}

async fn base(http: &Http, name: &str) -> Result<Value> {
    let found = http.models().routes().base(&BaseName::try_new(name)?).await?;
    Ok(card(found.name.as_str(), 0, found.name.as_str(), found.fingerprint.as_str()))
}

async fn version(http: &Http, id: &str, base: &str, adapter: &str) -> Result<Value> {
    let found = http.models().resolve(adapter).await?;
    of_base(base, &found)?;
    Ok(card(id, found.created_at_ms / 1000, &found.base, &found.digest))
}

fn cards(model: &pb::Model) -> Vec<Value> {
    let of = |id: &str| card(id, 0, &model.base, &model.digest);
    let aliases = model.aliases.iter().map(|alias| of(&format!("{}:{}@{alias}", model.base, model.adapter)));
    std::iter::once(of(&model.id)).chain(aliases).collect()
}

fn card(id: &str, created: u64, base: &str, digest: &str) -> Value {
    let parent = (id != base).then_some(base);
    json!({
        "id": id, "object": "model", "created": created, "owned_by": "tailor", "parent": parent, "root": base,
        "digest": digest,
    })
}

/// `base:adapter`, or one name alone.
fn names(model: &str) -> (&str, Option<&str>) {
    model.split_once(':').map_or((model, None), |(base, adapter)| (base, Some(adapter)))
}

/// What a request's `model` names: a base, `base:adapter[@…]` or an adapter alone; during a rollout the caller's side of it.
pub async fn find(http: &Http, model: &str, caller: &Caller) -> Result<Choice, ApiError> {
    let wanted = model.strip_prefix("ft:").unwrap_or(model);
    let found = match names(wanted) {
        (base, Some(adapter)) => http.rollouts.choose(base, adapter, caller).await,
        (name, None) if name.contains('@') => http.rollouts.choose("", name, caller).await,
        (name, None) => match http.rollouts.choose(name, "", caller).await {
            Err(error) if error.code() == ErrorCode::NotFound => http.rollouts.choose("", name, caller).await,
            found => found,
        },
    };
    found.map_err(|error| refused(model, error))
}

/// An adapter of another base is, by this name, no model either; nor has any model a name that none can have, such as a hub's
/// `owner/name`.
fn refused(model: &str, error: Error) -> ApiError {
    let no_model = match &error {
        Error::OtherBase { .. } => true,
        Error::Invalid(invalid) => PARTS.contains(&invalid.field.as_str()),
        other => other.code() == ErrorCode::NotFound,
    };
    if no_model { ApiError::no_model(model, error) } else { error.into() }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use tailor_pb::registry;

    use super::*;

    #[test]
    fn every_name_of_a_version_is_listed_and_a_base_has_no_parent() {
        let base = pb::Model { id: "little".into(), base: "little".into(), ..Default::default() };
        let tuned = pb::Model {
            id: "little:grammar@3".into(),
            base: "little".into(),
            adapter: "grammar".into(),
            aliases: vec!["production".into(), "staging".into()],
            ..Default::default()
        };
        let ids = |model: &pb::Model| cards(model).iter().map(|card| card["id"].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&base), ["little"]);
        assert_eq!(ids(&tuned), ["little:grammar@3", "little:grammar@production", "little:grammar@staging"]);
        assert_eq!((&cards(&base)[0]["parent"], &cards(&tuned)[1]["parent"]), (&Value::Null, &json!("little")));
    }

    #[test]
    fn an_adapter_under_another_base_is_no_model_and_a_registry_that_is_away_is_said_to_be() {
        let found = registry::AdapterVersion { adapter: "grammar".into(), base: "little".into(), ..Default::default() };
        assert_eq!(of_base("", &found).expect("its own").as_str(), "little");
        let error = of_base("other", &found).expect_err("another's");
        let response = refused("other:grammar@1", error);
        let body = response.body();
        assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!("model_not_found"), &json!("model")));
        assert!(body["error"]["message"].as_str().expect("words").contains("leave the base out, or name little"));
        assert_eq!(response.into_response().status(), 404);
        let away = Error::service("registry")(tonic::Status::unavailable("away"));
        assert_eq!(refused("other:grammar@1", away).into_response().status(), 503);
    }
}
