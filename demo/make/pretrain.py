"""Trains the base from nothing on the town's text, and saves it as a Hugging Face folder (weights in bf16).

Every step reads 16 x 128 ids that no step before it has read. A few minutes on two cores, half a minute on a GPU.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

import corpus
import tokenizer
from model import BASE_CONFIG, GptNeoX

BATCH, SEQ = 16, 128
WARM_UP = 100
PEAK, FLOOR = 3e-3, 3e-5  # learning rate


def stream(folder: Path, count: int, seed: int) -> torch.Tensor:
    """The first `count` ids of the documents, each closed by </s>."""
    pieces = tokenizer.load(folder)
    ids: list[int] = []
    for document in corpus.documents(seed):
        ids += pieces.encode(document)
        ids.append(pieces.eos_id())
        if len(ids) >= count:
            return torch.tensor(ids[:count])
    raise AssertionError("the documents are endless")


def learning_rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return PEAK * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


def pretrain(folder: Path, steps: int, seed: int, device: str) -> None:
    torch.manual_seed(seed)
    # One id more than a step's input in each row: the last target.
    rows = stream(folder, steps * BATCH * (SEQ + 1), seed).view(-1, SEQ + 1)
    batches = rows[torch.randperm(len(rows))].view(steps, BATCH, SEQ + 1).to(device)
    model = GptNeoX(BASE_CONFIG | {"vocab_size": tokenizer.load(folder).vocab_size()})
    model.initialize()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    started = time.monotonic()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", file=sys.stderr)
    model.save(folder)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="holds spiece.model; takes config.json and model.safetensors")
    arguments.add_argument("--steps", type=int, default=1500)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()
    pretrain(given.folder, given.steps, given.seed, given.device)
