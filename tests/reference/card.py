#!/usr/bin/env python3
"""Runs of the finished program on a GPU, held against f32, against PEFT, and against themselves.

    card.py losses --togi PROGRAM                     the demo's base, every step of a full run: bf16 and fp8 within 0.02 of f32; a line
                                                      more for what has other values than f32, against f32 over its own
    card.py peft --togi PROGRAM --base FOLDER ...     fifty steps from the same tensors: each loss within 0.5% of PEFT's
    card.py repeat --togi PROGRAM --base FOLDER ...   two processes make the same adapter, byte for byte

`...` is --records FILE.jsonl[.gz] --tokenizer FILE. PROGRAM is `togi` with its feature `cuda`. A line says what was found; the exit code is 1
where a bound does not hold. With --device cpu the script can be tried anywhere.
"""
import argparse
import gzip
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = """\
base_precision = "{precision}"
batch_size = 32
max_steps = {steps}
learning_rate = 2e-4
warmup_steps = {warm_up}
shuffle = false
[lora]
rank = 8
alpha = 32
dropout = {dropout}
target_modules = ["query_key_value"]
"""
STEPS, WARM_UP, WINDOW = 50, 10, 32


def train(words, folder, name, recipe, *more, device=None):
    """Trains; returns the adapter's folder and the lines of its log."""
    file, out = folder / f"{name}.toml", folder / name
    file.write_text(recipe)
    command = [words.togi, "--quiet", "--device", device or words.device, "train", "--local", "--recipe", file, "--out", out, *more]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return out, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(words, folder):
    demo = (ROOT / "recipes/demo-cpu.toml").read_text()

    def run(precision, name, device=None):
        recipe = re.sub(r"(?m)^base_precision = .*$", f'base_precision = "{precision}"', demo)
        return train(words, folder, name, recipe, "--base", ROOT / "demo/base", "--records", ROOT / "demo/records.jsonl",
                     "--learn", "answer", device=device)[1]

    full, worst = run("f32", "f32"), 0.0
    for precision in words.precisions:
        log = run(precision, precision)
        worst = max(worst, compare(f"{precision} against f32", log, full))
        if precision == "fp8":
            # The CPU computes in f32 whatever the weights are held as.
            compare("fp8 against f32 over its values", log, run(precision, "values", "cpu"))
    return worst <= 0.02


def compare(what, ours, theirs):
    """Tells how far two logs are apart; returns the largest distance."""
    pairs = [(one["loss"], other["loss"]) for one, other in zip(ours, theirs, strict=True)]
    apart = [abs(one - other) for one, other in pairs]
    at = apart.index(max(apart))
    print(f"{what}: {len(pairs)} steps from {pairs[0][1]:.4f} to {pairs[-1][1]:.4f}, at most {apart[at]:.4f} apart, in step {at + 1} "
          f"({pairs[at][0]:.4f} and {pairs[at][1]:.4f}), {sum(distance > 0.02 for distance in apart)} steps above 0.02", flush=True)
    return apart[at]


def records(words, folder, count):
    """The first records as a file, and their token ids."""
    with (gzip.open if str(words.records).endswith(".gz") else open)(words.records, "rt", encoding="utf-8") as file:
        text = "".join(line for line, _ in zip(file, range(count)))
    path = folder / "records.jsonl"
    path.write_text(text, encoding="utf-8")
    command = [words.togi, "tokenize", "--tokenizer", words.tokenizer, "--template", "--eos", "--max-length", "512", path]
    told = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return path, [json.loads(line)["ids"] for line in told.splitlines()]


def peft(words, folder):
    path, rows = records(words, folder, STEPS * WINDOW)
    theirs = fifty_steps(words, folder / "start", rows)
    recipe = RECIPE.format(precision="bf16", steps=STEPS, warm_up=WARM_UP, dropout=0.0)
    _, log = train(words, folder, "ours", recipe, "--base", words.base, "--records", path, "--tokenizer", words.tokenizer,
                   "--init-adapter", folder / "start")
    assert int(log[-1]["tokens"]) == sum(map(len, rows)), "both train on the same tokens"
    apart = [abs(ours["loss"] / loss - 1) for ours, loss in zip(log, theirs, strict=True)]
    worst = max(apart)
    at = apart.index(worst)
    print(f"PEFT: {STEPS} steps from {theirs[0]:.4f} to {theirs[-1]:.4f}, at most {worst:.3%} apart, in step {at + 1} "
          f"({log[at]['loss']:.4f} and {theirs[at]:.4f})")
    return worst <= 5e-3


def fifty_steps(words, start, rows):
    """PEFT's losses; its first tensors are written to a folder. B is not zero, so that A learns from the first step on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPTNeoXForCausalLM, get_linear_schedule_with_warmup
    device, began = words.device, time.time()
    torch.manual_seed(1)
    model = GPTNeoXForCausalLM.from_pretrained(words.base, dtype=torch.bfloat16, device_map={"": device})
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.0, target_modules=["query_key_value"]))
    trained = []
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data = value.data.float()
            if "lora_B" in name:
                torch.nn.init.uniform_(value, -0.01, 0.01)
            trained.append(value)
    model.save_pretrained(start)
    optimizer = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, WARM_UP, STEPS)
    told = []
    for first in range(0, len(rows), WINDOW):
        window = rows[first:first + WINDOW]
        targets, total = sum(len(row) - 1 for row in window), 0.0
        # Of like length, so that little is padded: a sum does not change with the order.
        window.sort(key=len)
        for at in range(0, len(window), 8):
            part = window[at:at + 8]
            ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(part):
                ids[number, :len(row)], mask[number, :len(row)] = torch.tensor(row), 1
            ids, mask = ids.to(device), mask.to(device)
            with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask).logits
            labels = ids.masked_fill(mask == 0, -100)[:, 1:]
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, reduction="sum")
            (loss / targets).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        told.append(total / targets)
        if len(told) % 10 == 1:
            print(f"PEFT's step {len(told)}: {told[-1]:.4f}, {time.time() - began:.1f} s", file=sys.stderr, flush=True)
    del model
    return told


def repeat(words, folder):
    path, _ = records(words, folder, 20 * WINDOW)
    good = True
    for precision in words.precisions:
        recipe = RECIPE.format(precision=precision, steps=20, warm_up=5, dropout=0.1)
        digests = []
        for name in ("first", "second"):
            out, log = train(words, folder, f"{precision}-{name}", recipe, "--base", words.base, "--records", path, "--tokenizer", words.tokenizer)
            digests.append(hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest())
        good &= digests[0] == digests[1]
        print(f"{precision}: two processes, {len(log)} steps each, last loss {log[-1]['loss']:.4f}: {digests[0][:16]} and {digests[1][:16]}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "peft", "repeat"])
    parser.add_argument("--togi", required=True)
    parser.add_argument("--base")
    parser.add_argument("--records")
    parser.add_argument("--tokenizer")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp8"])
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = {"losses": losses, "peft": peft, "repeat": repeat}[words.what](words, pathlib.Path(folder))
    sys.exit(0 if good else 1)


main()
