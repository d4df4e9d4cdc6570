#!/usr/bin/env python3
"""The peer: LoRA training by transformers, PEFT, torch.compile and bitsandbytes, over the same base and the same token ids.

    bench/peer.py MODE --base FOLDER --ids FILE [--steps N] [--seconds S]

    bf16-compiled  32 records of like length a step, padded to the longest, under torch.compile
    bf16-layers    the same with each layer compiled apart, which takes seconds instead of minutes
    bf16-grouped   the same without compiling
    nf4-512        4-bit normal floats with double quantization, fp16, 16 records x 2, in the order of the file
    int8-512       LLM.int8(), fp16, 4 records x 4, in the order of the file

A line of JSON every few steps that are measured; the last one counts.
"""
import argparse
import collections
import json
import random
import sys
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model

Mode = collections.namedtuple("Mode", "micro accumulation amp quantized grouped compiled warm_up")
MODES = {
    "bf16-compiled": Mode(32, 1, torch.bfloat16, None, True, "whole", 20),
    "bf16-layers": Mode(32, 1, torch.bfloat16, None, True, "layers", 20),
    "bf16-grouped": Mode(32, 1, torch.bfloat16, None, True, None, 8),
    "nf4-512": Mode(16, 2, torch.float16, "nf4", False, None, 4),
    "int8-512": Mode(4, 4, torch.float16, "int8", False, None, 2),
}
# Steps between two lines.
EVERY = 4
# What widths are padded to, as matrix units like it.
MULTIPLE = 8


def load(folder, mode, device):
    options = {"dtype": mode.amp, "attn_implementation": "sdpa", "device_map": {"": device}}
    if mode.quantized == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=mode.amp)
    elif mode.quantized == "int8":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder, **options)
    model.config.use_cache = False
    return model


def adapted(model):
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1,
                                             target_modules=["query_key_value"]))
    trained = [value for value in model.parameters() if value.requires_grad]
    for value in trained:
        value.data = value.data.float()
    return model.train(), trained


def batches(records, mode):
    """Micro-batches over and over: in the file's order, or of records of like length in a random order."""
    groups = [records[at:at + mode.micro] for at in range(0, len(records), mode.micro)]
    if mode.grouped:
        # As transformers groups by length: sorted within fifty batches at a time.
        span = 50 * mode.micro
        parts = (sorted(records[at:at + span], key=len, reverse=True) for at in range(0, len(records), span))
        groups = [part[at:at + mode.micro] for part in parts for at in range(0, len(part), mode.micro)]
        random.Random(42).shuffle(groups)
    # A last one that is not full would have everything compiled once more.
    groups = [group for group in groups if len(group) == mode.micro]
    while True:
        for group in groups:
            width = -(-max(map(len, group)) // MULTIPLE) * MULTIPLE
            ids = torch.zeros(len(group), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, record in enumerate(group):
                ids[row, :len(record)] = torch.tensor(record)
                mask[row, :len(record)] = 1
            yield ids, mask, len(group), sum(map(len, group))


class Trainer:
    def __init__(self, mode, model, trained, records, device):
        self.mode, self.trained, self.device = mode, trained, device
        self.model = torch.compile(model, dynamic=True) if mode.compiled == "whole" else model
        if mode.compiled == "layers":
            for layer in model.base_model.model.gpt_neox.layers:
                layer.compile(dynamic=True)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=mode.amp == torch.float16)
        self.batches = batches(records, mode)

    def step(self):
        """Takes an optimizer step; returns its records and tokens."""
        records = tokens = 0
        for _ in range(self.mode.accumulation):
            ids, mask, count, real = next(self.batches)
            if self.device != "cpu":
                ids, mask = (value.pin_memory().to(self.device, non_blocking=True) for value in (ids, mask))
            labels = ids.masked_fill(mask == 0, -100)
            with torch.autocast(self.device.split(":")[0], dtype=self.mode.amp):
                loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss / self.mode.accumulation
            self.scaler.scale(loss).backward()
            records, tokens = records + count, tokens + real
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return records, tokens


def versions(mode):
    import peft
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    if mode.quantized:
        import bitsandbytes
        found["bitsandbytes"] = bitsandbytes.__version__
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--base", required=True)
    parser.add_argument("--ids", required=True)
    parser.add_argument("--steps", type=int, default=48, help="most steps to measure")
    parser.add_argument("--seconds", type=float, default=40, help="most seconds to measure")
    parser.add_argument("--device", default="cuda:0", help="cpu to try the script")
    words = parser.parse_args()
    torch.manual_seed(42)
    mode, on_card = MODES[words.mode], words.device != "cpu"
    wait = torch.cuda.synchronize if on_card else lambda: None
    records = [json.loads(line)["ids"] for line in open(words.ids)]
    model, trained = adapted(load(words.base, mode, words.device))
    trainer = Trainer(mode, model, trained, records, words.device)
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    for number in range(mode.warm_up):
        began = time.time()
        trainer.step()
        wait()
        print(f"warm-up {number + 1}: {time.time() - began:.2f} s", file=sys.stderr, flush=True)
    began, samples, tokens = time.time(), 0, 0
    for number in range(1, words.steps + 1):
        more = trainer.step()
        samples, tokens = samples + more[0], tokens + more[1]
        if number % EVERY and number < words.steps:
            continue
        wait()
        seconds = time.time() - began
        figures = {
            "mode": words.mode, "steps": number, "samples_per_s": samples / seconds, "tokens_per_s": tokens / seconds,
            "epoch_s": len(records) * seconds / samples, "ms": 1e3 * seconds / number, "versions": versions(mode),
        }
        if on_card:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(figures), flush=True)
        if seconds > words.seconds:
            break


main()
