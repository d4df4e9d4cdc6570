"""Reference numbers for quantized bases, made by bitsandbytes on a CUDA device.

    python3 tests/reference/quantized.py FOLDER

writes FOLDER/quantized-*.safetensors and the folders FOLDER/quantized-{base,4bit,8bit}; they belong in
tests/reference/fixtures. Needs torch, transformers, peft, accelerate, safetensors and bitsandbytes; prints their versions.
`--device cpu` tries the script out where there is no GPU: those numbers are no reference.
"""

import argparse
import pathlib

import bitsandbytes
import peft
import torch
import transformers
from bitsandbytes import functional
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from safetensors.torch import save_file

FLOATS = {"f32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def normal(seed, *shape, scale=1.0):
    """Normal numbers from their own seed, on the CPU, so that no case depends on another."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * scale


def weights():
    """Name and values of the matrices that are quantized on their own."""
    # 260 blocks of 64: one full block of 256 scales and a tail.
    yield "large", normal(1, 65, 256, scale=0.05)
    # An odd count: the last byte has one code, the last block is short.
    yield "tail", normal(2, 5, 37, scale=0.3)
    outlier = normal(3, 24, 64, scale=0.02)
    outlier[7] *= 40
    yield "outlier", outlier
    zero = normal(4, 6, 64)
    zero[2] = 0
    yield "zero", zero
    yield "constant", torch.full((4, 64), 0.25)


def nf4(device):
    """Every part of a quantized matrix; the reader rounds `values`, which are f32, to the type of a case."""
    tensors = {}
    for shape, values in weights():
        tensors[f"{shape}.values"] = values
        for name, float_type in FLOATS.items():
            x = values.to(float_type).to(device)
            packed, plain = functional.quantize_4bit(x, quant_type="nf4", blocksize=64)
            again, state = functional.quantize_4bit(
                x, quant_type="nf4", blocksize=64, compress_statistics=True
            )
            assert torch.equal(packed, again)
            case = {
                "packed": packed,
                "absmax": plain.absmax,
                "nested_codes": state.absmax,
                "nested_absmax": state.state2.absmax,
                "nested_quant_map": state.state2.code,
                "offset": state.offset.reshape(1),
                "dequantized": functional.dequantize_4bit(again, state),
            }
            tensors |= {f"{shape}.{name}.{key}": value for key, value in case.items()}
    return tensors


def linear4bit(device):
    """Forward and input gradient of single layers; `rows` decides which of bitsandbytes' kernels runs."""
    tensors = {}
    shapes = [(10, 128, 24), (3, 128, 24), (1, 128, 24), (10, 40, 24)]
    for seed, (rows, inputs, outputs) in enumerate(shapes):
        shape = f"{rows}x{inputs}x{outputs}"
        weight = normal(100 + seed, outputs, inputs, scale=0.1)
        bias = normal(200 + seed, outputs, scale=0.1)
        x = normal(300 + seed, rows, inputs)
        dy = normal(400 + seed, rows, outputs)
        tensors |= {
            f"{shape}.weight": weight,
            f"{shape}.bias": bias,
            f"{shape}.x": x,
            f"{shape}.dy": dy,
        }
        for name, float_type in FLOATS.items():
            for compute in ("f32", "bf16"):
                layer = Linear4bit(inputs, outputs, compute_dtype=FLOATS[compute], quant_type="nf4")
                layer.weight = Params4bit(
                    weight.to(float_type), requires_grad=False, quant_type="nf4", module=layer
                )
                layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
                layer = layer.to(device)
                given = x.to(device).requires_grad_()
                y = layer(given)
                y.backward(dy.to(device))
                with torch.no_grad():
                    tensors[f"{shape}.{name}.{compute}.y_without_gradient"] = layer(x.to(device))
                tensors[f"{shape}.{name}.{compute}.y"] = y
                tensors[f"{shape}.{name}.{compute}.dx"] = given.grad
    return tensors


def linear8bit(device):
    """Forward and input gradient of single layers, beside the same product in full."""
    tensors = {}
    for seed, (rows, inputs, outputs) in enumerate([(12, 128, 48), (1, 128, 48), (12, 72, 40)]):
        shape = f"{rows}x{inputs}x{outputs}"
        # Numbers that fp16 has, so that both types of a case mean the same product.
        weight = normal(500 + seed, outputs, inputs, scale=0.1).half().float()
        bias = normal(600 + seed, outputs, scale=0.1).half().float()
        plain = normal(700 + seed, rows, inputs).clamp(-5.5, 5.5).half().float()
        columns = plain.clone()
        columns[:, 5] *= 12
        columns[0, 40] = 6.0
        columns = columns.half().float()
        dy = normal(800 + seed, rows, outputs).half().float()
        tensors |= {f"{shape}.weight": weight, f"{shape}.bias": bias, f"{shape}.dy": dy}
        for kind, x in {"plain": plain, "outliers": columns}.items():
            tensors[f"{shape}.{kind}.x"] = x
            tensors[f"{shape}.{kind}.full"] = (x.double() @ weight.double().T + bias.double()).float()
            for name in ("fp16", "f32"):
                float_type = FLOATS[name]
                layer = Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=6.0)
                layer.weight = Int8Params(weight.clone(), has_fp16_weights=False, requires_grad=False)
                layer.bias = torch.nn.Parameter(bias.to(float_type), requires_grad=False)
                layer = layer.to(device)
                given = x.to(float_type).to(device).requires_grad_()
                y = layer(given)
                y.backward(dy.to(float_type).to(device))
                tensors[f"{shape}.codes"] = layer.state.CB
                tensors[f"{shape}.row_absmax"] = layer.state.SCB
                tensors[f"{shape}.{kind}.{name}.y"] = y.float()
                tensors[f"{shape}.{kind}.{name}.dx"] = given.grad.float()
    return tensors


def base(folder):
    """A tiny base whose biases and gains are not what training starts with."""
    config = transformers.GPTNeoXConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        max_position_embeddings=64,
        rotary_pct=0.5,
        use_parallel_residual=False,
        tie_word_embeddings=False,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(sorted(model.named_parameters())):
            centre = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(centre + normal(1000 + seed, *parameter.shape, scale=0.2))
    model.save_pretrained(folder)


def load(folder, device, quantization=None):
    return transformers.GPTNeoXForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map={"": device},
        attn_implementation="eager",
        quantization_config=quantization,
    )


def four_bit(compute):
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=FLOATS[compute],
    )


def network(folder, device):
    """The base in full and in both quantized forms, saved and run."""
    tensors = {"ids": torch.randint(0, 61, (14,), generator=torch.Generator().manual_seed(9))}
    ids = tensors["ids"].to(device)[None]
    base(folder / "quantized-base")
    with torch.no_grad():
        tensors["logits.full"] = load(folder / "quantized-base", device)(ids).logits[0]
        for name, quantization in {
            "4bit": four_bit("f32"),
            "8bit": transformers.BitsAndBytesConfig(load_in_8bit=True),
        }.items():
            model = load(folder / "quantized-base", device, quantization)
            tensors[f"logits.{name}"] = model(ids).logits[0]
            model.save_pretrained(folder / f"quantized-{name}")
            again = load(folder / f"quantized-{name}", device)
            assert torch.equal(again(ids).logits[0], tensors[f"logits.{name}"])
        tensors["logits.4bit.bf16"] = load(folder / "quantized-base", device, four_bit("bf16"))(ids).logits[0]
    for compute in ("f32", "bf16"):
        tensors |= gradients(folder, device, ids, compute)
    return tensors


def gradients(folder, device, ids, compute):
    """The sum of the token losses and its gradient with respect to every LoRA tensor."""
    tensors = {}
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    )
    model = peft.get_peft_model(load(folder / "quantized-base", device, four_bit(compute)), settings)
    trained = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(trained):
            parameter.copy_(normal(2000 + seed, *parameter.shape, scale=0.1))
            tensors["lora." + name.replace(".default", "")] = parameter.detach().clone()
    logits = model(ids).logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    loss.backward()
    tensors[f"loss.{compute}"] = loss.reshape(1)
    for name, parameter in trained:
        tensors[f"gradient.{compute}." + name.replace(".default", "")] = parameter.grad
    return tensors


def write(path, tensors):
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    metadata = {
        "bitsandbytes": bitsandbytes.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    save_file(held, path, metadata)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--device", default="cuda:0")
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for module in (bitsandbytes, torch, transformers, peft):
        print(module.__name__, module.__version__)
    if given.device == "cpu":
        # Its AVX-512 form packs weights anew at the first pass, which widths other than multiples of 64 do not survive.
        bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    else:
        print(torch.cuda.get_device_name(given.device), "CUDA", torch.version.cuda)
    for name, make in {"nf4": nf4, "linear4bit": linear4bit, "linear8bit": linear8bit}.items():
        write(given.folder / f"quantized-{name}.safetensors", make(given.device))
    write(given.folder / "quantized-network.safetensors", network(given.folder, given.device))
    for path in sorted(given.folder.rglob("*")):
        if path.is_file():
            print(path.stat().st_size, path.relative_to(given.folder))


if __name__ == "__main__":
    main()
