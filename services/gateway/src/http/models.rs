//! `/v1/models`: every base, and every adapter version that an alias or its newest number names, under each of its names.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tailor_domain::ErrorCode;
use tailor_domain::rollout::Caller;
use tailor_pb::inference as pb;

use super::Http;
use super::error::ApiError;
use super::extract::Name;
use crate::rollout::Choice;

pub async fn list(State(http): State<Http>) -> Result<Json<Value>, ApiError> {
    let listed = crate::grpc::list(http.models()).await?;
    let data: Vec<Value> = listed.iter().flat_map(cards).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

pub async fn retrieve(State(http): State<Http>, Name(model): Name) -> Result<Json<Value>, ApiError> {
    let listed = crate::grpc::list(http.models()).await?;
    let wanted = model.strip_prefix("ft:").unwrap_or(&model);
    let found = listed.iter().flat_map(cards).find(|card| card["id"] == wanted);
    match found {
        Some(card) => Ok(Json(card)),
        None => {
            // A version that has no name of its own any more still answers.
            let (base, adapter) = names(wanted);
            let version = http.models().resolve(adapter.unwrap_or(base)).await;
            let version = version.map_err(|error| ApiError::no_model(&model, error))?;
            Ok(Json(card(wanted, version.created_at_ms / 1000, &version.base, &version.digest)))
        }
    }
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
    found.map_err(|error| {
        let message = error.to_string();
        let error = ApiError::from(error);
        if error.is_not_found() { ApiError::no_model(model, message) } else { error }
    })
}

#[cfg(test)]
mod tests {
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
}
