#!/usr/bin/env bash
# An adapter saved by PEFT loads with other scales if two patterns of it fit the same layer.
#
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.15.0, on the CPU (a download of some GB).
# Input:    a LoRA whose alpha_pattern names "v_proj" first and ".*layers.0.*" second. Both fit the
#           v_proj of layer 0; the first one counts.
# Expected: the loaded adapter equals the saved one, as it does with patterns that do not overlap.
# Seen:     save_pretrained sorts the patterns by their text, and "." is before "v", so that the
#           other pattern counts after loading. The scale of that layer goes from 2 to 10:
#               trained: v_proj 2.0    loaded: v_proj 10.0    logits differ
#           The weights load completely, and no warning says that a pattern was ambiguous.
# Effect:   a model that was good when it was trained and evaluated gives other answers as soon as
#           it is loaded from disk. Write patterns of which at most one fits each layer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'PYTHON'
import json, warnings
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("error", UserWarning)

def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        )
    )

def scale(model):
    return model.base_model.model.model.layers[0].self_attn.v_proj.scaling["default"]

def differs(patterns, name):
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], alpha_pattern=patterns,
        init_lora_weights=False,
    )
    trained = get_peft_model(base(), config).eval()
    trained.save_pretrained(name)
    loaded = PeftModel.from_pretrained(base(), name).eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        apart = (trained(tokens).logits - loaded(tokens).logits).abs().max().item()
    saved = list(json.load(open(f"{name}/adapter_config.json"))["alpha_pattern"])
    print(f"{name}: given {list(patterns)}, saved {saved}")
    print(f"    trained: {scale(trained)}, loaded: {scale(loaded)}, logits differ by {apart:.3f}")
    return scale(trained), scale(loaded), apart

assert differs({"v_proj": 8, "q_proj": 40}, "separate") == (2.0, 2.0, 0.0)
trained, loaded, apart = differs({"v_proj": 8, ".*layers.0.*": 40}, "overlapping")
assert (trained, loaded) == (2.0, 10.0) and apart > 0.01, "FAILED: the scales are kept now"
PYTHON

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    peft==0.21.2 transformers==5.24.0 torch==2.15.0
HF_HUB_OFFLINE=1 venv/bin/python check.py
