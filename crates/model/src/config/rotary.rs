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
    let share = fields.number("rotary_pct", SHARE)?;
    let base = fields.number("rotary_emb_base", BASE)?;
    // transformers writes these copies and does not read them for GPT-NeoX.
    agrees(fields, "partial_rotary_factor", "rotary_pct", share)?;
    agrees(fields, "rope_theta", "rotary_emb_base", base)?;
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
    let Some((name, object)) = found else {
        return Ok((share, base));
    };
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
    Ok((
        rope.number("partial_rotary_factor", share)?,
        rope.number("rope_theta", base)?,
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

fn agrees(fields: &Fields<'_>, copy: &str, name: &str, value: f64) -> Result<()> {
    let copied = fields.number(copy, value)?;
    #[allow(clippy::float_cmp)]
    if copied == value {
        return Ok(());
    }
    refuse(format!(
        "{copy} {copied} at the top is not {name}, {value}; transformers reads {name} for gpt_neox"
    ))
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Config(reason))
}
