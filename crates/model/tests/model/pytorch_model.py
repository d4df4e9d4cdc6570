"""Writes pytorch_model.bin: a tiny GPT-NeoX checkpoint as torch.save does (a zip with a pickle), without torch.

Values count up by 1/64 in the checkpoint's order. It carries the constant buffers of 2023, one of them of bools. The bytes are
the same at every run. Usage: python pytorch_model.py
"""

import io
import pathlib
import pickle
import struct
import zipfile

VOCAB, HIDDEN, INNER = 5, 4, 6


class Global:
    """A name that is pickled as a global of a module that need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, shape


class Pickler(pickle._Pickler):  # The Python one: its dispatch can be extended.
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", Global("torch", obj.kind), obj.key, "cpu", obj.count)
        return None

    def save_name(self, obj):
        self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")

    def save_tensor(self, obj):
        strides, step = [], 1
        for size in reversed(obj.shape):
            strides.insert(0, step)
            step *= size
        self.save(Global("torch._utils", "_rebuild_tensor_v2"))
        self.write(b"(")
        for part in (obj.storage, 0, tuple(obj.shape), tuple(strides), False):
            self.save(part)
        # The backward hooks, an empty OrderedDict.
        self.save(Global("collections", "OrderedDict"))
        self.write(b")R" + b"t" + b"R")

    dispatch[Global] = save_name
    dispatch[Tensor] = save_tensor


def main():
    shapes = [("gpt_neox.embed_in.weight", (VOCAB, HIDDEN))]
    layer = "gpt_neox.layers.0."
    for name, shape in [
        ("input_layernorm.weight", (HIDDEN,)),
        ("input_layernorm.bias", (HIDDEN,)),
        ("post_attention_layernorm.weight", (HIDDEN,)),
        ("post_attention_layernorm.bias", (HIDDEN,)),
        ("attention.query_key_value.weight", (3 * HIDDEN, HIDDEN)),
        ("attention.query_key_value.bias", (3 * HIDDEN,)),
        ("attention.dense.weight", (HIDDEN, HIDDEN)),
        ("attention.dense.bias", (HIDDEN,)),
        ("mlp.dense_h_to_4h.weight", (INNER, HIDDEN)),
        ("mlp.dense_h_to_4h.bias", (INNER,)),
        ("mlp.dense_4h_to_h.weight", (HIDDEN, INNER)),
        ("mlp.dense_4h_to_h.bias", (HIDDEN,)),
    ]:
        shapes.append((layer + name, shape))
    shapes += [("gpt_neox.final_layer_norm.weight", (HIDDEN,)), ("gpt_neox.final_layer_norm.bias", (HIDDEN,))]
    shapes.append(("embed_out.weight", (VOCAB, HIDDEN)))

    state, blobs, counter = {}, [], 0

    def add(name, kind, shape, data):
        count = 1
        for size in shape:
            count *= size
        state[name] = Tensor(Storage(kind, str(len(blobs)), count), shape)
        blobs.append(data)

    for name, shape in shapes:
        count = 1
        for size in shape:
            count *= size
        add(name, "HalfStorage", shape, struct.pack(f"<{count}e", *((counter + i) / 64 for i in range(count))))
        counter += count
    add(layer + "attention.bias", "BoolStorage", (1, 1, 2, 2), bytes([1, 0, 1, 1]))
    add(layer + "attention.masked_bias", "FloatStorage", (1,), struct.pack("<f", -1e9))
    add(layer + "attention.rotary_emb.inv_freq", "FloatStorage", (1,), struct.pack("<f", 1.0))

    text = io.BytesIO()
    Pickler(text, protocol=2).dump(state)
    path = pathlib.Path(__file__).with_name("pytorch_model.bin")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        entries = [("data.pkl", text.getvalue()), ("version", b"3\n")]
        entries += [(f"data/{key}", data) for key, data in enumerate(blobs)]
        for name, data in entries:
            file.writestr(zipfile.ZipInfo("archive/" + name, (1980, 1, 1, 0, 0, 0)), data)


if __name__ == "__main__":
    main()
