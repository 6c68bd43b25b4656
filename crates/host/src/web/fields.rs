//! `?fields=id,spec.name`: only some fields of what is asked for, whatever it is.

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::{DOCUMENT, Refusal};
use crate::records::Cause;

/// The type of an answer that has not all of its fields.
pub const PARTIAL: &str = "application/vnd.maru.partial+json";
/// The longest answer that fields are picked from, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Takes `fields` out of a request, and what they do not name out of the answer.
pub async fn pick(mut request: Request, next: Next) -> Response {
    let wanted = (request.method() == Method::GET).then(|| take(request.uri())).flatten();
    let Some((wanted, uri)) = wanted else { return next.run(request).await };
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().trim_start_matches(api::BASE).to_owned());
    let wanted = match path.as_deref().and_then(schema).map(|schema| check(&wanted, schema)) {
        Some(Ok(wanted)) => wanted,
        Some(Err(refusal)) => return refusal.into_response(),
        // Nothing that has fields.
        None => return next.run(request).await,
    };
    *request.uri_mut() = uri;
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let picked = match to_bytes(body, MAX_ANSWER).await.map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(value)) => picked(value, &wanted).to_string(),
        _ => {
            let message = "the answer is too long to pick fields from";
            let way_out = "ask for fewer items, or without fields";
            return Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "too-long", message, way_out).into_response();
        }
    };
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PARTIAL));
    Response::from_parts(head, Body::from(picked))
}

/// The fields that an address asks for, and the address without them.
fn take(uri: &Uri) -> Option<(String, Uri)> {
    let (fields, rest): (Vec<&str>, Vec<&str>) = uri.query()?.split('&').partition(|part| part.starts_with("fields="));
    let fields = fields.iter().map(|part| part["fields=".len()..].replace("%2C", ",").replace("%2c", ",")).collect::<Vec<_>>();
    let rest = if rest.is_empty() { uri.path().to_owned() } else { format!("{}?{}", uri.path(), rest.join("&")) };
    Some((fields.join(","), rest.parse().ok()?)).filter(|_| !fields.is_empty())
}

fn resolved(schema: &Value) -> &Value {
    let reference = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    reference.and_then(|pointer| DOCUMENT.pointer(pointer)).unwrap_or(schema)
}

/// What an address answers with: the schema of the item, or of each item.
fn schema(path: &str) -> Option<&'static Value> {
    let answer = DOCUMENT["paths"].get(path)?["get"]["responses"]["200"]["content"].get("application/json")?;
    let answer = resolved(&answer["schema"]);
    match answer["properties"].get("items") {
        Some(items) => Some(resolved(&items["items"])),
        None => Some(answer),
    }
}

/// Splits the fields; refuses one that is not there.
fn check(wanted: &str, schema: &Value) -> Result<Vec<Vec<String>>, Refusal> {
    let split = |field: &str| field.split('.').map(String::from).collect::<Vec<_>>();
    let wanted: Vec<Vec<String>> = wanted.split(',').map(split).collect();
    for field in &wanted {
        if schema["properties"].get(&field[0]).is_none() {
            let known: Vec<&str> =
                schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            let message = format!("there is no field '{}'", field[0]);
            let way_out = format!("name some of these, with commas between them: {}", known.join(", "));
            return Err(Refusal::senseless(Cause::new("bad-parameter", message, way_out)));
        }
    }
    Ok(wanted)
}

/// Each item of a list, or the item, with these fields.
fn picked(value: Value, wanted: &[Vec<String>]) -> Value {
    let one = |item: &Value| {
        let mut left = Map::new();
        wanted.iter().for_each(|field| copy(item, field, &mut left));
        Value::Object(left)
    };
    match value {
        Value::Object(mut page) if page.get("items").is_some_and(Value::is_array) => {
            let items = page["items"].as_array().into_iter().flatten().map(one).collect();
            page.insert("items".into(), Value::Array(items));
            Value::Object(page)
        }
        item => one(&item),
    }
}

fn copy(from: &Value, field: &[String], to: &mut Map<String, Value>) {
    let Some((name, inner)) = field.split_first() else { return };
    let Some(value) = from.get(name) else { return };
    if inner.is_empty() {
        to.insert(name.clone(), value.clone());
    } else if let Value::Object(inside) = to.entry(name.clone()).or_insert_with(|| Value::Object(Map::new())) {
        copy(value, inner, inside);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_picked_from_items_and_lists_and_unknown_ones_refused() {
        let vm = schema("/vms").unwrap();
        assert_eq!(vm, schema("/vms/{vm}").unwrap());
        assert_eq!(check("id,spec.nmae,colour", vm).unwrap_err().cause.message, "there is no field 'colour'");
        let wanted = check("state,spec.name,spec.cpus,pid", vm).unwrap();
        let item = json!({"id": 1, "state": "off", "spec": {"name": "web", "cpus": 1, "boot": {}}});
        let left = json!({"state": "off", "spec": {"name": "web", "cpus": 1}});
        assert_eq!(picked(item.clone(), &wanted), left);
        assert_eq!(picked(json!({"items": [item], "next": "web"}), &wanted), json!({"items": [left], "next": "web"}));
        let (fields, rest) = take(&"/api/v1/vms?limit=1&fields=id%2Cstate&after=x".parse().unwrap()).unwrap();
        assert_eq!((fields.as_str(), rest.to_string().as_str()), ("id,state", "/api/v1/vms?limit=1&after=x"));
        assert!(take(&"/api/v1/vms?limit=1".parse().unwrap()).is_none());
    }
}
