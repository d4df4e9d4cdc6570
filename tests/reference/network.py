"""Logits of GPTNeoXForCausalLM: every variant of the network, and one checkpoint in four forms.

Writes fixtures/base (the weights of all scripts: run this one first), fixtures/forms and fixtures/network.safetensors.
"""

import itertools
import json
import shutil

import torch
from common import BASE, FIXTURES, base, config, logits, only, randomize, records, write_json, write_tensors
from safetensors.torch import save_file
from transformers import GPTNeoXForCausalLM

RECORDS = records(2, seed=1, shortest=9, longest=16)
FORMS = FIXTURES / "forms"
WEIGHTS = {"config.json", "model.safetensors"}


def write_base():
    model = randomize(GPTNeoXForCausalLM(config()), seed=7)
    model.save_pretrained(BASE)
    only(BASE, WEIGHTS)
    return model


def variants():
    """Logits of the first record over all combinations."""
    made = {}
    choices = itertools.product([False, True], [1.0, 0.25], [False, True], ["gelu", "gelu_new", "gelu_fast"])
    for parallel, rotary, tied, activation in choices:
        model = base(
            use_parallel_residual=parallel, rotary_pct=rotary, tie_word_embeddings=tied, hidden_act=activation
        )
        name = f"{'parallel' if parallel else 'sequential'}-{rotary}-{'tied' if tied else 'untied'}-{activation}"
        made[name] = logits(model, RECORDS[0]["ids"])
    return made


def fresh(name):
    folder = FORMS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(BASE / "config.json", folder)
    return folder


def write_old(model):
    """As files of 2023 are: fp16, the constant buffers, the old names of the configuration."""
    folder = fresh("old")
    longest = model.config.max_position_embeddings
    tensors = {name.replace("lm_head", "embed_out"): value.half() for name, value in model.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = torch.ones(longest, longest, dtype=torch.bool).tril()[None, None].contiguous()
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{attention}.rotary_emb.inv_freq"] = model.gpt_neox.rotary_emb.inv_freq.half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    del values["rope_parameters"], values["dtype"], values["attention_bias"], values["attention_dropout"]
    values |= {"rotary_pct": 1.0, "rotary_emb_base": 10000, "torch_dtype": "float16", "transformers_version": "4.28.1"}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def forms(model):
    """The same checkpoint in other forms; each is read back by transformers."""
    fresh("sharded")
    model.save_pretrained(FORMS / "sharded", max_shard_size="40KB")
    only(FORMS / "sharded", {path.name for path in (FORMS / "sharded").iterdir()} - {"generation_config.json"})
    torch.save(model.state_dict(), fresh("pickled") / "pytorch_model.bin")
    write_old(model)
    folders = {"single": BASE} | {name: FORMS / name for name in ["sharded", "pickled", "old"]}
    made = {}
    for name, folder in folders.items():
        read = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        made[f"form-{name}"] = logits(read, RECORDS[1]["ids"])
    return made


model = write_base()
write_tensors("network.safetensors", variants() | forms(model))
write_json("network.json", [record["ids"] for record in RECORDS])
