//! What the document says of every operation alike, and more exactly of parameters than their types do.

use utoipa::openapi::{
    Content, OpenApi, Ref, RefOr, ResponseBuilder, Type,
    path::{Operation, Parameter},
    schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaFormat, SchemaType},
};

/// A list of entity tags, or `*` (RFC 9110, 13.1); ours have no comma.
const TAGS: &str = r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#;
/// What a page said: bytes in hexadecimal.
const TOKEN: &str = "^([0-9a-f]{2})*$";

/// Answers that any request over TCP may get.
const REFUSALS: [(&str, &str); 3] = [
    ("401", "A token is needed"),
    ("403", "The token may only read, or a web page asks"),
    ("429", "Too many requests"),
];

/// Makes the document say so.
pub(super) fn polish(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
            &mut item.head,
            &mut item.options,
        ];
        operations.into_iter().flatten().for_each(operation);
    }
}

fn operation(operation: &mut Operation) {
    for one in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(one) = one {
            parameter(one);
        }
    }
    for (code, description) in REFUSALS {
        let problem = Content::new(Some(Ref::from_schema_name("Problem")));
        let response = ResponseBuilder::new()
            .description(description)
            .content("application/problem+json", problem)
            .build();
        let known = &mut operation.responses.responses;
        known.entry(code.to_owned()).or_insert_with(|| response.into());
    }
}

fn parameter(parameter: &mut Parameter) {
    let Some(RefOr::T(schema)) = &mut parameter.schema else { return };
    if let Schema::Object(object) = schema {
        // It is there or not, but never null.
        if let SchemaType::Array(types) = &mut object.schema_type {
            types.retain(|one| *one != Type::Null);
            if let [one] = types.as_slice() {
                object.schema_type = SchemaType::Type(one.clone());
            }
        }
        match parameter.name.as_str() {
            "If-Match" | "If-None-Match" => object.pattern = Some(TAGS.to_owned()),
            "continue" => object.pattern = Some(TOKEN.to_owned()),
            _ => {}
        }
    }
    if ["address", "client"].contains(&parameter.name.as_str()) {
        let of = |format: &str| {
            ObjectBuilder::new()
                .schema_type(SchemaType::Type(Type::String))
                .format(Some(SchemaFormat::Custom(format.to_owned())))
        };
        *schema = Schema::AnyOf(AnyOfBuilder::new().item(of("ipv4")).item(of("ipv6")).build());
    }
}
