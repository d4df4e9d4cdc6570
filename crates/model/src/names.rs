//! The names of a checkpoint's tensors, freed of what wrappers, savers and versions added.

/// Modules that hold another and compute nothing. They are put around a whole model or a part of
/// it, so that their names can be anywhere in a tensor's name; gpt-neox has none of these names.
const WRAPPERS: [&str; 5] = [
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_orig_mod",
    "module",
];

/// What `PeftModel` puts before a model's names; twice where a `PeftModel` was wrapped again.
const PEFT: &str = "base_model.model.";

/// The body's name in a model with a head.
const BODY: &str = "gpt_neox.";
/// The parts of the body. A body that was saved alone has them without its name.
const PARTS: [&str; 3] = ["embed_in.", "layers.", "final_layer_norm."];

/// The head's names: in checkpoints, and in the memory of transformers 5, which other tools save.
const HEAD: &str = "embed_out.";
const HEAD_IN_MEMORY: &str = "lm_head.";

/// The name of a base's tensor. One that is no wrapper's, saver's or version's stays as it is.
pub(crate) fn of_base(name: &str) -> String {
    let unwrapped = unwrapped(name);
    let inner = unwrapped.strip_prefix("model.").unwrap_or(&unwrapped);
    if let Some(rest) = inner.strip_prefix(HEAD_IN_MEMORY) {
        format!("{HEAD}{rest}")
    } else if PARTS.iter().any(|part| inner.starts_with(part)) {
        format!("{BODY}{inner}")
    } else if inner.starts_with(BODY) || inner.starts_with(HEAD) {
        inner.to_owned()
    } else {
        name.to_owned()
    }
}

/// PEFT's name of an adapter's tensor in a file. In memory, and in files that hold the state of a
/// whole model, a factor also has the name of its adapter, which is `default` unless it was chosen.
pub(crate) fn of_adapter(name: &str) -> String {
    let unwrapped = unwrapped(name);
    let inner = unwrapped.trim_start_matches(PEFT);
    if !inner.starts_with(BODY) {
        return name.to_owned();
    }
    let inner = match inner.strip_suffix(".default.weight") {
        Some(factor) if factor.ends_with(".lora_A") || factor.ends_with(".lora_B") => {
            format!("{factor}.weight")
        }
        _ => inner.to_owned(),
    };
    format!("{PEFT}{inner}")
}

/// Whether an adapter's tensor is of a module that no adapter changes here.
pub(crate) fn is_head_or_embedding(name: &str) -> bool {
    let modules = ["embed_in", "embed_out", "lm_head"];
    name.split('.').any(|part| modules.contains(&part))
}

fn unwrapped(name: &str) -> String {
    let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_s_name_loses_what_is_around_it_and_nothing_else() {
        const DENSE: &str = "gpt_neox.layers.1.attention.dense.weight";
        for name in [
            DENSE,
            "_orig_mod.gpt_neox.layers.1.attention.dense.weight",
            "module._orig_mod.gpt_neox.layers.1.attention.dense.weight",
            "model.gpt_neox.layers.1.attention.dense.weight",
            "layers.1.attention.dense.weight",
            "model.layers.1.attention.dense.weight",
            "_fsdp_wrapped_module.gpt_neox.layers.1._fsdp_wrapped_module.\
             _checkpoint_wrapped_module.attention.dense.weight",
        ] {
            assert_eq!(of_base(name), DENSE, "{name}");
        }
        for name in [
            "lm_head.weight",
            "module.lm_head.weight",
            "model.embed_out.weight",
        ] {
            assert_eq!(of_base(name), "embed_out.weight", "{name}");
        }
        for name in [
            "score.weight",
            "model.score.weight",
            "module.score.weight",
            "transformer.layers.1.attention.dense.weight",
            "base_model.model.gpt_neox.layers.1.attention.dense.weight",
        ] {
            assert_eq!(of_base(name), name);
        }
    }

    #[test]
    fn an_adapter_s_name_loses_what_is_around_it_and_nothing_else() {
        const FACTOR: &str = "base_model.model.gpt_neox.layers.1.mlp.dense_4h_to_h.lora_A.weight";
        let module = "gpt_neox.layers.1.mlp.dense_4h_to_h";
        for name in [
            FACTOR.to_owned(),
            format!("_orig_mod.{FACTOR}"),
            format!("module.{FACTOR}"),
            format!("base_model.model.{FACTOR}"),
            format!("{module}.lora_A.weight"),
            format!("base_model.model.{module}.lora_A.default.weight"),
            format!("module.base_model.model._orig_mod.{module}.lora_A.default.weight"),
        ] {
            assert_eq!(of_adapter(&name), FACTOR, "{name}");
        }
        for name in [
            "base_model.model.lm_head.lora_A.weight".to_owned(),
            format!("base_model.model.{module}.lora_A.other.weight"),
            format!("base_model.model.{module}.default.weight"),
            "base_model.model.layers.1.mlp.dense_4h_to_h.lora_A.weight".to_owned(),
        ] {
            assert_eq!(of_adapter(&name), name);
        }
    }
}
