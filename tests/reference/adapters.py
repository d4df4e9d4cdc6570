"""Adapters that PEFT wrote, with its logits; or, with --check, what PEFT and transformers make of folders written here.

    adapters.py                  writes fixtures/adapters, fixtures/merged and fixtures/adapters.safetensors
    adapters.py --ours           adds PEFT's logits for fixtures/adapters/ours, which Togi wrote, to fixtures/ours.safetensors
    adapters.py --check FOLDER   FOLDER has base/, adapter/, merged/ and ours.safetensors (`ids`, `logits`)
"""

import pathlib
import shutil
import sys

import torch
from common import BASE, FIXTURES, base, logits, only, records, write_json, write_tensors
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FOLDERS = FIXTURES / "adapters"
IDS = records(1, seed=8, shortest=15, longest=15)[0]["ids"]
KEPT = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
FOUR = ["dense_4h_to_h", "query_key_value", "dense_h_to_4h", "dense"]
PLAIN = {"r": 4, "lora_alpha": 10, "target_modules": ["query_key_value", "dense"]}

TAKEN = {
    "four": {"target_modules": FOUR},
    "pickled": {},
    "rank-pattern": {"target_modules": FOUR, "rank_pattern": {"dense": 2, "query_key_value": 7}},
    "alpha-pattern": {"alpha_pattern": {"layers.1.attention.dense": 3, "query_key_value": 24}},
    "expressions": {
        "rank_pattern": {r"layers\.1\..*": 3, r"gpt_neox\.layers\.0\.attention\.(dense|query_key_value)": 5},
        "alpha_pattern": {r".*\.dense": 6, r"attention\..*": 20},
    },
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"dense": 9}, "alpha_pattern": {"dense": 5}},
    "one-layer": {"target_modules": FOUR[:3], "layers_to_transform": [1]},
    "full-names": {"target_modules": ["gpt_neox.layers.0.mlp.dense_4h_to_h", "layers.1.attention.query_key_value"]},
    "expression-of-modules": {"target_modules": r".*\.0\.(attention|mlp)\.dense.*"},
}
REFUSED = {
    "dora": {"use_dora": True},
    "saved-module": {"modules_to_save": ["embed_in"]},
    "bias": {"bias": "lora_only"},
    "lora-bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def adapted(changes, seed=9):
    """An adapter as after training: none of its factors is zero."""
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **PLAIN | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if ".lora_" in name:
                value.copy_(0.3 * (2 * torch.rand(value.shape, generator=generator) - 1))
    return model


def save(model, name):
    folder = FOLDERS / name
    model.save_pretrained(folder)
    if name == "pickled":
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    only(folder, KEPT)
    return folder


def loaded(adapter, folder=BASE):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter).eval()


def write():
    shutil.rmtree(FIXTURES / "merged", ignore_errors=True)
    for name in [*TAKEN, *REFUSED]:
        shutil.rmtree(FOLDERS / name, ignore_errors=True)
    made = {"base": logits(base(), IDS)}
    for name, changes in TAKEN.items():
        # As PEFT itself reads it back: what it writes may mean something else, for it sorts patterns by name.
        made[name] = logits(loaded(save(adapted(changes), name)), IDS)
        assert (made[name] - made["base"]).abs().max() > 0.1, name
    for name, changes in REFUSED.items():
        save(adapted(changes), name)
    merged = loaded(FOLDERS / "four").merge_and_unload()
    made["merged"] = logits(merged, IDS)
    merged.save_pretrained(FIXTURES / "merged")
    only(FIXTURES / "merged", {"config.json", "model.safetensors"})
    write_tensors("adapters.safetensors", made)
    write_json("adapters.json", {"ids": IDS, "taken": list(TAKEN), "refused": list(REFUSED)})


def check(folder):
    ours = load_file(folder / "ours.safetensors")
    ids, expected = ours["ids"].flatten().tolist(), ours["logits"]
    peft = loaded(folder / "adapter", folder / "base")
    written = load_file(folder / "adapter" / "adapter_model.safetensors")
    active = {name.replace(".default.", ".") for name in peft.state_dict() if ".lora_" in name}
    if active != set(written):
        sys.exit(f"PEFT has other tensors: {sorted(active ^ set(written))}")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    for name, model in {"adapter": peft, "merged": merged}.items():
        difference = (logits(model, ids) - expected).abs().max().item()
        print(f"{name}: the largest difference of a logit is {difference:.2e}")
        if not difference <= 1e-4:
            sys.exit(f"{name}: not the same logits")


match sys.argv[1:]:
    case []:
        write()
    case ["--ours"]:
        write_tensors("ours.safetensors", {"logits": logits(loaded(FOLDERS / "ours"), IDS)})
    case ["--check", folder]:
        check(pathlib.Path(folder))
    case _:
        sys.exit(__doc__)
