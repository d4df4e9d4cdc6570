//! A configuration as transformers 4 and 5 both read it: 4 ignores `rope_parameters` without a word
//! and takes a quarter of each head's dimensions as rotary.

use serde_json::{Map, Value, json};

use super::Config;
use crate::error::{Error, Result};

/// The two names of the type of a checkpoint's values.
const DTYPES: [&str; 2] = ["dtype", "torch_dtype"];

impl Config {
    /// Returns the fields of a `config.json` with the rotary embeddings and the type of the values
    /// in both spellings. Fields that a base's `own` file has beside those that are read stay.
    ///
    /// # Errors
    /// `own` is not a JSON object.
    pub(crate) fn as_all_versions_read_it(&self, own: Option<&[u8]>) -> Result<Map<String, Value>> {
        let parse = |bytes: &[u8]| {
            serde_json::from_slice(bytes).map_err(|source| Error::Json {
                what: "config.json".into(),
                source,
            })
        };
        let mut fields: Map<String, Value> = parse(&self.to_json())?;
        let mut own: Map<String, Value> = own.map_or(Ok(Map::new()), parse)?;
        // Kinds other than the default are refused when a base is read.
        own.remove("rope_scaling");
        // These are read with a default, and may also be those of generation_config.json.
        fields.retain(|name, _| !own.contains_key(name));
        fields.append(&mut own);
        fields.insert("rotary_pct".into(), json!(self.rotary_pct));
        fields.insert("rotary_emb_base".into(), json!(self.rotary_emb_base));
        fields.insert(
            "rope_parameters".into(),
            json!({
                "partial_rotary_factor": self.rotary_pct,
                "rope_theta": self.rotary_emb_base,
                "rope_type": "default",
            }),
        );
        let dtype = DTYPES.iter().find_map(|name| fields.get(*name)).cloned();
        if let Some(dtype) = dtype {
            fields.extend(DTYPES.map(|name| (name.to_owned(), dtype.clone())));
        }
        Ok(fields)
    }
}
