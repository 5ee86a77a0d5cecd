//! Pairs a value with its place in the file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Spanned};

/// A place in a file; line and column count from 1, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

impl Spot {
    /// The beginning of a file.
    pub const START: Spot = Spot { line: 1, column: 1 };
}

impl From<Location> for Spot {
    fn from(location: Location) -> Spot {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Spot { line: narrow(location.line()), column: narrow(location.column()) }
    }
}

/// A value of a file and its place. Half the size of [`Spanned`], with a JSON Schema.
#[derive(Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// The place where it begins.
    pub spot: Spot,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<At<T>, D::Error> {
        // A value of a YAML alias gets the place of its use, where the reader sees its key.
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(At { value: spanned.value, spot: spanned.referenced.into() })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
