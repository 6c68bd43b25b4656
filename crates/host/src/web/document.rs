//! What all operations of the OpenAPI document have in common.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::fields;

/// The longest `Idempotency-Key`.
pub const MAX_KEY: usize = 128;

/// Adds it.
pub struct Common;

impl utoipa::Modify for Common {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        // As JSON, where every operation is reached in the same way. It came from there, so it fits.
        let Ok(mut json) = serde_json::to_value(&*document) else { return };
        let operations = json["paths"].as_object_mut().into_iter().flatten();
        for (method, operation) in operations.filter_map(|(_, methods)| methods.as_object_mut()).flatten() {
            for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
                if parameter["name"] == "Idempotency-Key" {
                    parameter["schema"] = json!({"type": "string", "pattern": format!("^[!-~]{{1,{MAX_KEY}}}$")});
                }
            }
            if method == "get" {
                describe_fields(operation);
            }
        }
        if let Ok(whole) = serde_json::from_value(json) {
            *document = whole;
        }
    }
}

/// `fields`, for what answers with JSON.
fn describe_fields(operation: &mut Value) {
    if operation["responses"]["200"]["content"].get("application/json").is_none() {
        return;
    }
    operation["responses"]["200"]["content"][fields::PARTIAL] =
        json!({"schema": {"type": "object", "description": "With `fields`: what they name, and nothing else"}});
    let parameter = json!({
        "name": "fields", "in": "query", "required": false, "schema": {"type": "string"},
        "description": "Only these fields of the item, or of each item of a list: names with commas between them, and dots for what is \
                        inside of one, like `id,spec.name`",
    });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}
