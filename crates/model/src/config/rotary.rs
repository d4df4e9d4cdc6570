//! Rotary embeddings in every spelling that transformers has used. Scaled ones are refused by name.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::{Error, Result};

/// transformers' defaults for GPT-NeoX.
const SHARE: f64 = 0.25;
const BASE: f64 = 10_000.0;

/// Share of a head's dimensions that are rotated, and the base of the frequencies.
///
/// | years | spelling |
/// |---|---|
/// | since 2022 | `rotary_pct`, `rotary_emb_base` |
/// | since 2023 | beside them `rope_scaling` with `type` and `factor` |
/// | since 2024 | `rope_scaling` with `rope_type` |
/// | since 2025 | `rope_parameters` with `rope_type`, `rope_theta`, `partial_rotary_factor` |
///
/// # Errors
/// A kind other than `default`, and spellings that two versions of transformers would read
/// differently.
pub(super) fn rotary(fields: &Fields<'_>) -> Result<(f64, f64)> {
    let scaling = object(fields, "rope_scaling")?;
    let parameters = object(fields, "rope_parameters")?;
    if let (Some(scaling), Some(parameters)) = (scaling, parameters)
        && scaling != parameters
    {
        return refuse("rope_scaling and rope_parameters differ; keep one of them".to_owned());
    }
    // transformers 5 prefers the old name.
    let found = scaling.map(|object| ("rope_scaling", object));
    let found = found.or(parameters.map(|object| ("rope_parameters", object)));
    let none = Map::new();
    let (name, object) = found.unwrap_or(("rope_parameters", &none));
    if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
        let text = format!("{name}.{key}: rotary embeddings of each kind of layer are not read");
        return refuse(text);
    }
    let rope = Fields(object);
    let (new, old) = (rope.text("rope_type", "")?, rope.text("type", "")?);
    if !new.is_empty() && !old.is_empty() && new != old {
        let text = format!("{name}: rope_type {new:?} and type {old:?} differ; keep one of them");
        return refuse(text);
    }
    let (key, kind) = if new.is_empty() {
        ("type", old)
    } else {
        ("rope_type", new)
    };
    if !matches!(kind, "" | "default") {
        let text = format!("{name}.{key} {kind:?} is not computed; only \"default\" is");
        return refuse(text);
    }
    let number = |old, new, default| agreed(fields, (name, &rope), [old, new], default);
    Ok((
        number("rotary_pct", "partial_rotary_factor", SHARE)?,
        number("rotary_emb_base", "rope_theta", BASE)?,
    ))
}

/// An object that is there and not empty.
fn object<'a>(fields: &Fields<'a>, name: &str) -> Result<Option<&'a Map<String, Value>>> {
    match fields.get(name) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
        Some(_) => refuse(format!("{name} is not an object")),
    }
}

/// A number by its old name at the top, or by its new one in the object of this name.
fn agreed(
    fields: &Fields<'_>,
    (name, rope): (&str, &Fields<'_>),
    [old, new]: [&str; 2],
    default: f64,
) -> Result<f64> {
    let at_top = fields.number(old, default)?;
    let value = rope.number(new, at_top)?;
    #[allow(clippy::float_cmp)]
    if fields.get(old).is_some() && at_top != value {
        return refuse(format!(
            "{old} {at_top} and {name}.{new} {value} differ, of which transformers 4 reads the \
             first and 5 the second; keep one of them"
        ));
    }
    // transformers 4 writes this copy, 5 keeps it alone at the top, and neither reads it for
    // GPT-NeoX.
    let copied = fields.number(new, value)?;
    #[allow(clippy::float_cmp)]
    if copied != value {
        return refuse(format!(
            "{new} {copied} at the top is not {value}, as {old} or {name}.{new} says; transformers \
             reads only those for gpt_neox"
        ));
    }
    Ok(value)
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Config(reason))
}
