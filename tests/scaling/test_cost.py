"""Counted costs against published figures and against counts by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calm_core.config import Config, MlpAutoencoderConfig, parse_section, resolve_config
from calm_core.models.autoencoders.mlp import MlpAutoencoder
from calm_core.models.calm import Calm
from calm_core.models.transformer import Transformer
from calm_core.scaling.cost import (
    Cost,
    estimate,
    forward_flops,
    state_bytes,
    teacher_flops_per_token,
    training_flops_per_token,
)
from pipelines import profiles


def of_profile(name: str, model: str, *overrides: str) -> Cost:
    return estimate(resolve_config(profiles.load(name), overrides), gpus=8)[model]


@pytest.mark.parametrize(
    ("profile", "model", "training", "inference"),
    [("calm-m", "CALM", 3.7e20, 2.9e8), ("transformer-s", "Transformer", 6.6e20, 4.4e8)],
)
def test_the_published_operations_come_out_of_the_profiles(
    profile: str, model: str, training: float, inference: float
) -> None:
    """arXiv 2510.27688: figures with two digits, for 5e11 tokens; the public scripts take 2^21 a step, 5 % more."""
    cost = of_profile(profile, model)
    assert cost.training_tokens == 250_000 * 2**21
    assert cost.training_flops / cost.training_tokens * 5e11 == pytest.approx(training, rel=0.05)
    assert cost.inference_flops_per_token == pytest.approx(inference, rel=0.05)


@pytest.mark.parametrize(
    ("profile", "model", "published"),
    [
        ("calm-m", "CALM", 371e6),
        ("calm-l", "CALM", 735e6),
        ("calm-xl", "CALM", 1.82e9),
        ("calm-m", "autoencoder", 75e6),
        ("transformer-s", "Transformer", 281e6),
    ],
)
def test_the_published_numbers_of_parameters_come_out_of_the_profiles(
    profile: str, model: str, published: float
) -> None:
    assert sum(of_profile(profile, model).parameters.values()) == pytest.approx(published, rel=0.02)


SMALL = parse_section(
    Config,
    {
        "data": {"sequence_length": 64},
        "tokenizer": {"vocab_size": 300},
        "autoencoder": {"model": {"hidden_size": 32, "intermediate_size": 48, "latent_size": 8}},
        "calm": {
            "model": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "head": {"num_layers": 2},
            }
        },
        "transformer": {
            "model": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        },
    },
)


def of(config: Config, *overrides: str) -> dict[str, Cost]:
    return estimate(resolve_config(config.model_dump(), overrides), gpus=1)


@pytest.mark.parametrize("kind", ["autoencoder", "calm", "transformer"])
def test_a_training_counts_what_the_estimate_of_its_profile_says(kind: str) -> None:
    model = {"calm": "CALM", "transformer": "Transformer"}.get(kind, kind)
    autoencoder = SMALL.autoencoder if kind == "calm" else None
    counted = training_flops_per_token(getattr(SMALL, kind), autoencoder, vocab_size=300, sequence_length=64)
    assert counted == of(SMALL)[model].training_flops_per_token


def products(*modules: nn.Module) -> int:
    """Weights of linear layers, each of which is one multiplication and one addition for a position."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def test_what_is_counted_is_the_published_accounting() -> None:
    """2 x weights of matrix products + 4 T d L of attention; 3 x that in training, N heads, the encoder forward once.

    In use: one head, and the decoder with its projection of each token to the vocabulary.
    """
    cost, vocab_size, positions = of(SMALL)["CALM"], 300, 64 // 4
    autoencoder = MlpAutoencoder(parse_section(MlpAutoencoderConfig, SMALL.autoencoder.model.model_dump()), vocab_size)
    calm = Calm(SMALL.calm.model, vocab_size, 4, 8)
    backbone = 2 * products(calm.transformer, calm.embed_proj) + 4 * positions * 32 * 3
    head, draws = 2 * products(calm.mlp_generator), SMALL.calm.model.head.model_samples
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    encoding = 2 * (4 * products(encoder.encoder_layers[0]) + products(encoder.squeeze_layer))
    encoding += 2 * products(encoder.encoder_layers[1], encoder.hidden_to_latent)
    decoding = 2 * products(decoder.latent_to_hidden, decoder.decoder_layers[0], decoder.expand_layer)
    decoding += 2 * 4 * (products(decoder.decoder_layers[1]) + vocab_size * 32)
    assert cost.training_flops_per_token == (3 * (backbone + draws * head) + encoding) / 4
    assert cost.inference_flops_per_token == (backbone + head + decoding) / 4


def test_a_forward_pass_costs_what_torch_counts() -> None:
    """Torch counts the products that run; attention over the whole context, as here."""
    cost = estimate(SMALL, gpus=1)["Transformer"]
    model = Transformer(SMALL.transformer.model, 300)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hidden, _ = model.transformer(model.embed(torch.zeros(1, 64, dtype=torch.int64)))
        model.lm_head(hidden)
    assert counter.get_total_flops() / 64 == pytest.approx(cost.inference_flops_per_token)


def test_the_heads_samples_are_the_difference_that_they_make() -> None:
    """One more model sample costs one more forward and backward pass of the head, counted by hand."""
    head = 64 * 32 + 32 * 32 + 2 * (2 + 1 + 2 + 1) * 32 * 32 + 32 * 32 + 32 * 8
    fewer, more = (
        estimate(resolve_config(SMALL.model_dump(), [f"calm.model.head.model_samples={n}"]), gpus=1)["CALM"]
        for n in (4, 5)
    )
    assert more.training_flops_per_token - fewer.training_flops_per_token == 3 * 2 * head / 4
    assert more.inference_flops_per_token == fewer.inference_flops_per_token


def test_a_head_that_samples_in_steps_costs_each_of_them() -> None:
    costs = [
        estimate(
            resolve_config(SMALL.model_dump(), ["calm.model.head=flow", f"calm.model.head.sampling_steps={n}"]), gpus=1
        )
        for n in (1, 2, 3)
    ]
    first, second, third = (cost["CALM"].inference_flops_per_token for cost in costs)
    assert second > first
    assert third - second == second - first


def test_a_student_costs_its_lessons_and_a_teacher_its_forward_passes() -> None:
    """A lesson by regression costs a model sample, one by cross-entropy the decoder to and fro as well."""
    frozen, own = SMALL.autoencoder, ["calm.teacher=there", "calm.distillation.samples=5"]
    by_tokens = [*own, "calm.distillation.loss=cross_entropy"]
    text = of(SMALL, "calm.model.head.model_samples=5")["CALM"].training_flops_per_token
    regression = of(SMALL, *own)["CALM"].training_flops_per_token
    assert regression == text
    decoder = forward_flops(MlpAutoencoder(frozen.model, 300).to("meta").logits, (1, 8))
    assert of(SMALL, *by_tokens)["CALM"].training_flops_per_token - regression == 5 * 2 * decoder / 4
    both = of(SMALL, *own, "calm.distillation.own_loss_weight=1", "calm.model.head.model_samples=7")["CALM"]
    one = of(SMALL, "calm.model.head.model_samples=12")["CALM"]
    assert both.training_flops_per_token == one.training_flops_per_token

    student = resolve_config(SMALL.model_dump(), own).calm
    passes = teacher_flops_per_token(student, SMALL.transformer, frozen, 300, 64)
    assert passes == of(SMALL)["Transformer"].inference_flops_per_token
    encoder = forward_flops(MlpAutoencoder(frozen.model, 300).to("meta").encode, (1, 4), dtype=torch.int64)
    assert teacher_flops_per_token(student, SMALL.calm, frozen, 300, 64) == (text - encoder / 4) / 3


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ([], 8.0),
        (["calm.decoder_loss.samples=3", "calm.decoder_loss.positions=0.25"], 0.75),
        (["calm.decoder_loss.samples=4", "calm.decoder_loss.until=0.2"], 0.8),
    ],
    ids=["all", "some positions", "a warm-up"],
)
def test_a_loss_of_decoded_samples_costs_them_and_the_decoder_without_its_weights_gradients(
    settings: list[str], share: float
) -> None:
    """By hand: 3 x a sample of the head and 2 x the decoder, for each sample, position and step that it is of."""
    config = resolve_config(SMALL.model_dump(), ["calm.decoder_loss=cross_entropy", *settings])
    plain, cost = (estimate(one, gpus=1)["CALM"] for one in (SMALL, config))
    head = 64 * 32 + 32 * 32 + 2 * (2 + 1 + 2 + 1) * 32 * 32 + 32 * 32 + 32 * 8
    decoder = 8 * 32 + 3 * 32 * 48 + 32 * 4 * 32 + 4 * (3 * 32 * 48 + 300 * 32)
    added = cost.training_flops_per_token - plain.training_flops_per_token
    assert added == pytest.approx(share * (3 * 2 * head + 2 * 2 * decoder) / 4)
    assert cost.inference_flops_per_token == plain.inference_flops_per_token
    assert cost.activation_bytes > plain.activation_bytes


@pytest.mark.parametrize("head", ["energy", "diffusion", "flow", "residual", "mixture"])
def test_the_parts_are_the_whole_model(head: str) -> None:
    config = resolve_config(SMALL.model_dump(), [f"calm.model.head={head}"])
    model = Calm(config.calm.model, 300, 4, 8)
    parts = estimate(config, gpus=1)["CALM"].parameters
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


def test_zero_stages_share_optimiser_then_gradients_then_parameters() -> None:
    """Of 1000 parameters in bf16 on 4 GPUs: 2 + 4 + 12 bytes each, by hand; an average is 4 more."""
    shares = state_bytes(1000, SMALL.calm, gpus=4)
    assert shares == {0: 9_000, 1: 9_000, 2: 6_000, 3: 4_500}
    assert state_bytes(1000, SMALL.calm.model_copy(update={"precision": "fp32"}), gpus=4)[0] == 16_000
    assert state_bytes(1000, SMALL.calm.model_copy(update={"precision": "bf16-mixed"}), gpus=4)[0] == 18_000
    averaged = state_bytes(1000, SMALL.calm.model_copy(update={"ema_decay": 0.999}), gpus=4)
    assert averaged == {0: 10_000, 1: 10_000, 2: 7_000, 3: 5_500}  # 16 bytes of the optimiser's, over four


def test_checkpointed_activations_are_fewer() -> None:
    config = resolve_config(SMALL.model_dump(), ["calm.activation_checkpointing=true"])
    assert estimate(config, gpus=1)["CALM"].activation_bytes < estimate(SMALL, gpus=1)["CALM"].activation_bytes
