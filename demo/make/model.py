"""GPT-NeoX with sequential residual, and LoRA on its attention: just enough of both to make and to check the demo's base.

Tensor names and layouts are those of a Hugging Face checkpoint (`GPTNeoXForCausalLM`).
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

BASE_CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "model_type": "gpt_neox",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_parallel_residual": False,
}


def _rotate(x: Tensor) -> Tensor:  # (batch, heads, seq, head_dim): rotary embedding over the whole head (rotary_pct 1.0)
    seq, dim = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=x.device) / dim)
    angle = torch.outer(torch.arange(seq, device=x.device), frequency).repeat(1, 2)  # (seq, head_dim)
    left, right = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat((-right, left), dim=-1) * angle.sin()


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)  # a head's query, key and value lie side by side
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:  # (batch, seq, hidden) -> same
        batch, seq, hidden = x.shape
        query, key, value = self.query_key_value(x).view(batch, seq, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(_rotate(query), _rotate(key), value, is_causal=True)
        return self.dense(mixed.transpose(1, 2).reshape(batch, seq, hidden))


class Mlp(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, intermediate)
        self.dense_4h_to_h = nn.Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.input_layernorm = nn.LayerNorm(hidden, eps)
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps)
        self.attention = Attention(hidden, config["num_attention_heads"])
        self.mlp = Mlp(hidden, config["intermediate_size"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.final_layer_norm = nn.LayerNorm(config["hidden_size"], config["layer_norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_in(ids)
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class GptNeoX(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config = config
        self.gpt_neox = Body(config)
        self.embed_out = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Tensor:  # (batch, seq) -> (batch, seq, vocab)
        return self.embed_out(self.gpt_neox(ids))

    def initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config["initializer_range"])
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path, device: str) -> "GptNeoX":
        """Weights are read as f32: bf16 is only how they are stored."""
        model = GptNeoX(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
        return model.to(device)


class Lora(nn.Module):
    """A frozen linear layer and the two small matrices beside it: y = Wx + (alpha / rank) B A dropout(x)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.linear, self.scale, self.dropout = linear, alpha / rank, nn.Dropout(dropout)
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * functional.linear(functional.linear(self.dropout(x), self.lora_a), self.lora_b)


def add_lora(model: GptNeoX, rank: int, alpha: float, dropout: float) -> list[nn.Parameter]:
    """Freezes the model, puts LoRA on every `query_key_value`, and returns what is to be trained."""
    model.requires_grad_(False)
    for layer in model.gpt_neox.layers:
        layer.attention.query_key_value = Lora(layer.attention.query_key_value, rank, alpha, dropout)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
