//! What all operations of the OpenAPI document have in common.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::fields;

/// The longest `Idempotency-Key`.
pub const MAX_KEY: usize = 128;

/// Adds how to show who asks.
pub struct Common;

impl utoipa::Modify for Common {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Adds what operations have in common, where every operation is reached in the same way.
pub fn complete(document: &mut Value) {
    for schema in document.pointer_mut("/components/schemas").and_then(Value::as_object_mut).into_iter().flatten() {
        without_object_defaults(schema.1);
    }
    let operations = document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flatten();
    for (method, operation) in operations.filter_map(|(_, methods)| methods.as_object_mut()).flatten() {
        // By `get`, here and below: an index would add what is not there.
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            if parameter["name"] == "Idempotency-Key" {
                parameter["schema"] = json!({"type": "string", "pattern": format!("^[!-~]{{1,{MAX_KEY}}}$")});
            }
        }
        if method == "get" {
            describe_fields(operation);
        }
    }
}

/// Leaves out defaults that are objects: makers of clients do not know what to do with them, and each part has its own.
fn without_object_defaults(schema: &mut Value) {
    for (_, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(property) = property.as_object_mut().filter(|property| property.get("default").is_some_and(Value::is_object))
        {
            property.remove("default");
        }
    }
}

/// `fields`, for what answers with JSON.
fn describe_fields(operation: &mut Value) {
    if operation.pointer("/responses/200/content/application~1json").is_none() {
        return;
    }
    operation["responses"]["200"]["content"][fields::PARTIAL] =
        json!({"schema": {"type": "object", "description": "With `fields`: what they name, and nothing else"}});
    let parameter = json!({
        "name": "fields", "in": "query", "required": false, "schema": {"type": "string"},
        "description": "Only these fields of the item, or of each item of a list: names with commas between them, and dots for what is \
                        inside of one, like `id,spec.name`",
    });
    match operation.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}
