//! The schema of an admin API: one JSON Schema whose properties are the paths.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::{Failure, Index};

/// Collects the pages of one program.
pub(super) struct Builder {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let _defined: [Schema; 2] =
            [generator.subschema_for::<Failure>(), generator.subschema_for::<Index>()];
        Builder { generator, paths: Map::new() }
    }

    /// Adds the page at a path.
    pub(super) fn page<T: JsonSchema>(mut self, path: &str) -> Builder {
        let schema = self.generator.subschema_for::<T>();
        self.paths.insert(path.to_owned(), schema.to_value());
        self
    }

    /// Adds the body of a request, which is defined but has no path.
    pub(super) fn body<T: JsonSchema>(mut self) -> Builder {
        let _defined: Schema = self.generator.subschema_for::<T>();
        self
    }

    pub(super) fn document(mut self, program: &str) -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": format!("Admin API of {program}"),
            "description": "What each path answers with status 200 or 202. With 404 for an unknown path it is \
                            $defs/Index, with every other status from 400 on $defs/Failure.",
            "type": "object",
            "properties": self.paths,
            "$defs": self.generator.take_definitions(true),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{agent, gateway};

    #[test]
    fn schema_has_every_path_and_describes_every_field() {
        let programs =
            [(gateway::schema(), gateway::GET.len() - 1 + gateway::POST.len()), (agent::schema(), 6)];
        for (schema, paths) in programs {
            assert_eq!(schema["properties"].as_object().unwrap().len(), paths, "{schema:#}");
            for (name, definition) in schema["$defs"].as_object().unwrap() {
                assert!(definition["description"].is_string(), "{name}");
                for (field, schema) in definition["properties"].as_object().into_iter().flatten() {
                    assert!(schema["description"].is_string(), "{name}.{field}: {schema}");
                }
            }
        }
    }
}
