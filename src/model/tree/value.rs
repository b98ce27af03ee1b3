//! Hands TOML values to serde, with faults that keep their place and the names that would have been right.
//!
//! toml's own deserializer does the same but tells an unknown name only as a sentence.

use std::fmt;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::mistakes::{Span, nearest};

/// A value with its place.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// Why a value could not be read.
#[derive(Debug)]
pub(super) struct Fault {
    /// Where; the value itself if it is not said.
    pub at: Option<Span>,
    pub message: String,
    pub remedy: Option<String>,
    /// The names of the fields of what was to be read: see [`fields_of`].
    fields: &'static [&'static str],
}

impl Fault {
    fn new(message: String, remedy: Option<String>) -> Self {
        Self { at: None, message, remedy, fields: &[] }
    }

    fn at(mut self, span: Span) -> Self {
        self.at.get_or_insert(span);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // The model's errors come as `message; remedy`.
        let text = message.to_string();
        match text.split_once("; ") {
            Some((message, remedy)) => Self::new(message.to_owned(), Some(remedy.to_owned())),
            None => Self::new(text, None),
        }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(format!("found {unexpected}, {expected} is expected"), None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let shown: String = variant.chars().take(40).collect();
        Self::new(format!("{shown:?} is not known here"), Some(nearest(variant, expected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let shown: String = field.chars().take(40).collect();
        Self::new(format!("there is no key {shown:?} here"), Some(nearest(field, expected)))
    }
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Field<'i> {
    pub name: String,
    pub at: Span,
    pub value: Value<'i>,
}

/// Returns the fields of a table in the file's order.
pub(super) fn fields<'i>(table: &DeTable<'i>) -> Vec<Field<'i>> {
    let field =
        |(key, value): (&Spanned<_>, &Value<'i>)| Field { name: name(key), at: key.span(), value: value.clone() };
    let mut fields: Vec<_> = table.iter().map(field).collect();
    fields.sort_by_key(|field| field.at.start);
    fields
}

fn name(key: &Spanned<std::borrow::Cow<'_, str>>) -> String {
    key.get_ref().as_ref().to_owned()
}

/// Reads a struct from its fields.
pub(super) fn read<T: DeserializeOwned>(fields: &[&Field<'_>]) -> Result<T, Fault> {
    T::deserialize(Fields(fields))
}

/// Reads one value.
pub(super) fn read_value<T: DeserializeOwned>(value: &Value<'_>) -> Result<T, Fault> {
    T::deserialize(At(value))
}

/// Returns the names of a struct's fields, as its own reader knows them.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    T::deserialize(Probe).err().map_or(&[], |fault| fault.fields)
}

/// Asks a type for the names of its fields.
struct Probe;

impl<'de> Deserializer<'de> for Probe {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(Fault::new("not a struct".to_owned(), None))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(Fault { fields, ..Fault::new(String::new(), None) })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Fields<'a, 'i>(&'a [&'a Field<'i>]);

impl<'de> Deserializer<'de> for Fields<'_, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(Entries { rest: self.0.iter().copied(), open: None })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct struct map enum identifier ignored_any
    }
}

struct At<'a, 'i>(&'a Value<'i>);

impl<'de> Deserializer<'de> for At<'_, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let result = match self.0.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Integer(number) => integer(number, visitor),
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(Fault::new(format!("{number} is not a number"), None)),
            },
            DeValue::Boolean(flag) => visitor.visit_bool(*flag),
            DeValue::Datetime(time) => visitor.visit_str(&time.to_string()),
            DeValue::Array(values) => visitor.visit_seq(Elements(values.iter())),
            DeValue::Table(table) => {
                let fields = fields(table);
                visitor.visit_map(Entries { rest: fields.iter(), open: None })
            }
        };
        result.map_err(|fault| fault.at(self.0.span()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let DeValue::String(text) = self.0.get_ref() else {
            let message = format!("a text is expected, this is {}", self.0.get_ref().type_str());
            return Err(Fault::new(message, Some(nearest("", variants))).at(self.0.span()));
        };
        let text: StrDeserializer<'_, Fault> = text.as_ref().into_deserializer();
        text.deserialize_enum(name, variants, visitor).map_err(|fault| fault.at(self.0.span()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct struct map identifier ignored_any
    }
}

fn integer<'de, V: Visitor<'de>>(number: &DeInteger<'_>, visitor: V) -> Result<V::Value, Fault> {
    if let Ok(number) = i64::from_str_radix(number.as_str(), number.radix()) {
        return visitor.visit_i64(number);
    }
    match u64::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) => visitor.visit_u64(number),
        Err(_) => Err(Fault::new(format!("{number} is above the largest number, {}", u64::MAX), None)),
    }
}

struct Elements<I>(I);

impl<'de, 'a, 'i: 'a, I: Iterator<Item = &'a Value<'i>>> SeqAccess<'de> for Elements<I> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.0.next().map(|value| seed.deserialize(At(value))).transpose()
    }
}

struct Entries<'a, 'i, I> {
    rest: I,
    open: Option<&'a Field<'i>>,
}

impl<'de, 'a, 'i, I: Iterator<Item = &'a Field<'i>>> MapAccess<'de> for Entries<'a, 'i, I> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.open = self.rest.next();
        let Some(field) = self.open else { return Ok(None) };
        let name: StrDeserializer<'_, Fault> = field.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|fault| fault.at(field.at.clone()))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let field = self.open.ok_or_else(|| Fault::new("a value without a key".to_owned(), None))?;
        // What a newtype of the model says of a text has no place of its own: it is this value's.
        seed.deserialize(At(&field.value)).map_err(|fault| fault.at(field.value.span()))
    }
}

/// Reads a text, for what is handed on to a parser of the model.
pub(super) fn text(value: &Value<'_>) -> Result<String, Fault> {
    String::deserialize(At(value))
}
