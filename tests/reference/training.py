"""Gradients of PEFT's LoRA, and fifty steps of torch's AdamW under transformers' schedule.

Writes fixtures/training.json and fixtures/training.safetensors.
"""

import math

import torch
from common import base, loss_sum, records, write_json, write_tensors
from peft import LoraConfig, get_peft_model
from transformers import get_linear_schedule_with_warmup

TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
VARIANTS = {
    "sequential": {"use_parallel_residual": False, "rotary_pct": 1.0},
    "parallel": {"use_parallel_residual": True, "rotary_pct": 0.25},
}
RANK, ALPHA = 4, 10
RECIPE = {
    "learning_rate": 2e-2,
    "warmup": 6,
    "steps": 50,
    "largest_norm": 0.6,
    "batch_size": 2,
    "accumulation": 4,
}


def adapted(model, targets):
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def factors(model):
    """The trainable tensors by the names that PEFT writes."""
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name.replace(".default.", "."): value for name, value in trainable.items()}


def fill(model, seed):
    """Factors as in the middle of training: B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in sorted(factors(model).items()):
            value.copy_(0.2 * (2 * torch.rand(value.shape, generator=generator) - 1))


def gradients(made):
    """Of the sum of the token losses: each target alone, and all together, with the same values."""
    batch = records(3, seed=2)
    for variant, changes in VARIANTS.items():
        values = None
        for targets in [TARGETS, *([target] for target in TARGETS)]:
            model = adapted(base(**changes), targets)
            if values is None:
                fill(model, seed=3)
                values = {name: value.detach().clone() for name, value in factors(model).items()}
            for name, value in factors(model).items():
                value.data.copy_(values[name])
            total = sum(loss_sum(model, record)[0] for record in batch)
            total.backward()
            which = targets[0] if len(targets) == 1 else "all"
            for name, value in factors(model).items():
                made[f"{variant}.{which}.{name}"] = value.grad
    made |= {f"values.{name}": value for name, value in values.items()}
    return batch


def fifty_steps(made):
    """The last window of an epoch has five records instead of eight."""
    rows = records(8 * 15 + 5, seed=4)
    window = RECIPE["batch_size"] * RECIPE["accumulation"]
    torch.manual_seed(5)
    model = adapted(base(), TARGETS)
    made |= {f"start.{name}": value.detach().clone() for name, value in factors(model).items()}
    optimizer = torch.optim.AdamW(factors(model).values(), lr=RECIPE["learning_rate"], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, RECIPE["warmup"], RECIPE["steps"])
    log, offset = [], 0
    for _ in range(RECIPE["steps"]):
        part = rows[offset : offset + window]
        offset = (offset + len(part)) % len(rows)
        sums = [loss_sum(model, record) for record in part]
        targets = sum(count for _, count in sums)
        optimizer.zero_grad()
        for total, _ in sums:
            (total / targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(factors(model).values(), RECIPE["largest_norm"])
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        loss = math.fsum(total.item() for total, _ in sums) / targets
        log.append({"loss": loss, "norm": norm.item(), "rate": rate, "targets": targets})
    made |= {f"end.{name}": value for name, value in factors(model).items()}
    return rows, log


def initial_spread(made):
    """Mean and deviation of PEFT's fresh A, in units of its bound."""
    torch.manual_seed(6)
    spread = []
    for _ in range(40):
        for name, value in factors(adapted(base(), TARGETS)).items():
            if "lora_A" in name:
                spread.append((value.detach() * math.sqrt(value.shape[1])).flatten())
            else:
                assert not value.any()
    values = torch.cat(spread)
    return {"count": values.numel(), "mean": values.mean().item(), "deviation": values.std().item(),
            "largest": values.abs().max().item()}


tensors = {}
batch = gradients(tensors)
rows, log = fifty_steps(tensors)
clipped = sum(step["norm"] > RECIPE["largest_norm"] for step in log)
assert 0 < clipped < len(log), f"{clipped} steps were clipped: the test should see both"
write_tensors("training.safetensors", tensors)
write_json(
    "training.json",
    {
        "rank": RANK,
        "alpha": ALPHA,
        "batch": batch,
        "recipe": RECIPE,
        "records": rows,
        "steps": log,
        "initial": initial_spread(tensors),
    },
)
