"""What the scripts share: the tiny model, its records, and where fixtures go."""

import json
import os
import pathlib
import random

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
BASE = FIXTURES / "base"

torch.set_num_threads(1)


def config(**changes):
    """Small, but with more than one of everything, and no width equal to another."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "hidden_act": "gelu",
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return GPTNeoXConfig(**shape | changes)


def randomize(model, seed):
    """Fills every parameter, so that none is where training starts: biases are not 0 and gains not 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
            gain = "layernorm.weight" in name or "layer_norm.weight" in name
            parameter.copy_(1 + 0.3 * uniform if gain else 0.25 * uniform)
    return model.eval()


def base(**changes):
    """The tiny base; the weights are those of `fixtures/base` whatever the configuration says of how they are used."""
    model = GPTNeoXForCausalLM(config(**changes))
    weights = GPTNeoXForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict()
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["gpt_neox.embed_in.weight"]
    model.load_state_dict(weights)
    return model.eval()


def records(count, seed, shortest=3, longest=14):
    """Records of random ids; about one label in five is not learned."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(61) for _ in range(draw.randint(shortest, longest))]
        labels = [-100 if draw.random() < 0.2 else id for id in ids]
        made.append({"ids": ids, "labels": labels})
    return made


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].contiguous()


def loss_sum(model, record):
    """The sum of a record's token losses and the count of its learned targets."""
    ids, labels = torch.tensor([record["ids"]]), torch.tensor(record["labels"])
    scores = model(ids).logits[0, :-1]
    total = torch.nn.functional.cross_entropy(scores, labels[1:], ignore_index=-100, reduction="sum")
    return total, int((labels[1:] != -100).sum())


def write_tensors(name, tensors):
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, FIXTURES / name)


def write_json(name, value):
    (FIXTURES / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def only(folder, keep):
    """Removes what a library wrote besides the files that are read."""
    for path in folder.iterdir():
        if path.name not in keep:
            os.remove(path)
