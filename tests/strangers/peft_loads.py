"""Opens an adapter's folder with PEFT's own loader and checks that every tensor of it is in use.

    peft_loads.py BASE_FOLDER ADAPTER_FOLDER
"""
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, adapter = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
active = {name.replace(".default.", "."): value for name, value in model.state_dict().items() if ".lora_" in name}
written = load_file(f"{adapter}/adapter_model.safetensors")
missing = sorted(set(written) ^ set(active))
if missing:
    sys.exit(f"not the same tensors: {missing}")
for name, value in written.items():
    if not torch.equal(value, active[name]):
        sys.exit(f"{name} differs")
ids = torch.tensor([[5, 6, 7, 8]])
with torch.no_grad():
    with_adapter = model(ids).logits
    with model.disable_adapter():
        without = model(ids).logits
if torch.equal(with_adapter, without):
    sys.exit("the adapter changes nothing")
print(f"PEFT loads {len(written)} tensors; the largest change of a logit is {(with_adapter - without).abs().max():.3e}")
