"""Public folders made from the published names of keys and weights, small."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tests.conftest import sentences

V, K, L, D, WIDE, LAYERS, HEAD_LAYERS, NOISE = 320, 4, 6, 16, 24, 2, 1, 8

Weights = dict[str, torch.Tensor]


def block(prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.layernorm.weight": (D,),
        f"{prefix}.mlp.gate_proj.weight": (WIDE, D),
        f"{prefix}.mlp.up_proj.weight": (WIDE, D),
        f"{prefix}.mlp.down_proj.weight": (D, WIDE),
    }


def autoencoder_shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"encoder.embed_tokens.weight": (V, D)}
    for i in range(layers):
        shapes |= block(f"encoder.encoder_layers.{i}") | block(f"decoder.decoder_layers.{i}")
    return shapes | {
        "encoder.squeeze_layer.weight": (D, K * D),
        "encoder.squeeze_layer.bias": (D,),
        "encoder.hidden_to_latent.weight": (2 * L, D),
        "encoder.hidden_to_latent.bias": (2 * L,),
        "encoder.norm.weight": (D,),
        "decoder.latent_to_hidden.weight": (D, L),
        "decoder.latent_to_hidden.bias": (D,),
        "decoder.expand_layer.weight": (K * D, D),
        "decoder.expand_layer.bias": (K * D,),
        "decoder.norm.weight": (D,),
    }


def calm_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.embed_tokens.weight": (V, D), "transformer.norm.weight": (D,)}
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (D, D) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.gate_proj.weight": (WIDE, D), f"{layer}.mlp.up_proj.weight": (WIDE, D)}
        shapes |= {f"{layer}.mlp.down_proj.weight": (D, WIDE)}
        shapes |= {f"{layer}.input_layernorm.weight": (D,), f"{layer}.post_attention_layernorm.weight": (D,)}
    linear = {
        "embed_proj.0": (2 * D, K * D),
        "embed_proj.2": (D, 2 * D),
        "mlp_generator.noise_embd": (D, NOISE),
        "mlp_generator.hidden_embd": (D, D),
        "mlp_generator.final_layer.linears.0": (D, D),
        "mlp_generator.final_layer.linears.2": (L, D),
    }
    norms = ["embed_proj.3", "mlp_generator.norm_hidden", "mlp_generator.norm_noise", "mlp_generator.final_layer.in_ln"]
    for i in range(HEAD_LAYERS):
        own = f"mlp_generator.mlp_blocks.{i}"
        norms.append(f"{own}.in_ln")
        linear |= {f"{own}.linears.0": (D, 2 * D), f"{own}.linears.2": (D, D), f"{own}.linears.4": (2 * D, D)}
        linear |= {f"{own}.down_proj": (D, D)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.3 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


AUTOENCODER_CONFIG = {
    "architectures": ["Autoencoder"], "patch_size": K, "latent_size": L, "hidden_size": D, "intermediate_size": WIDE,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "vocab_size": V, "ae_dropout": 0.15, "kl_clamp": 0.5,
    "kl_weight": 1e-3, "rms_norm_eps": 1e-6,
}  # fmt: skip
CALM_CONFIG = {
    "architectures": ["EnergyTransformer"], "ae_path": "../autoencoder", "patch_size": K, "latent_size": L,
    "noise_size": NOISE, "num_mlp_layers": HEAD_LAYERS, "num_samples": 8, "beta": 1.0, "hidden_size": D,
    "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "vocab_size": V, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": [1, 2],
}  # fmt: skip


def write_folder(path: Path, config: dict[str, Any], weights: Weights, layout: str = "safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    halves = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    match layout:
        case "safetensors":
            safetensors.torch.save_file(weights, path / "model.safetensors")
        case "bin":
            torch.save(weights, path / "pytorch_model.bin")
        case "sharded safetensors":
            names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
            for name, half in zip(names, halves, strict=True):
                safetensors.torch.save_file(half, path / name)
            index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        case "sharded bin":
            names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
            for name, half in zip(names, halves, strict=True):
                torch.save(half, path / name)
            index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
            (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def write_tokenizer(path: Path) -> Path:
    """A byte-level BPE as Llama-3's: special tokens of other names than ours, a first token put before each text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([sentences(i, 12) for i in range(20)], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    path.mkdir(parents=True, exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>", "lstrip": False}}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return path
