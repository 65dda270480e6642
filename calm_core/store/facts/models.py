"""Facts of trained models."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from calm_core.store.facts.base import ORIGIN, Count, Facts, Measured, Number, Packing, Precision, Rate, Seconds
from calm_core.store.facts.data import Vocabulary


class ModelFacts(Facts, Vocabulary):
    """A trained model of any kind.

    Attributes:
        packing: Of the text that it was trained on, so of the text that it writes.
        parameters: Numbers that were trained; 0 where earlier code has trained them with ZeRO stage 3.
        trained_tokens: None of a model that was trained elsewhere.
        validation: Metrics on held-out text after the last step.
        precision: That it was trained in, one after the other where it went on on another kind of processor; None as of
            `bad_steps`.
        bad_steps, skipped_steps, loss_spikes, rewinds: What went wrong in training (see `Guards`); None of a model
            that earlier code has trained, or that was trained elsewhere.
        seconds: Of training in all, by the clock.
        accelerator_seconds: The same of each rank, added up; None where a part was done by code that did not count it.
        energy_joules: Of the devices of all ranks, on CPU of the whole machine; None where some was not measured.
        tokens_per_second, loader_wait_seconds, checkpoint_wait_seconds, validation_seconds: Of the process that ended
            training (see `SpeedMeter`).
        memory_bytes: Of the rank that had most, at its worst moment.
        model_flops_utilisation: Share of peak_tflops (1e12 FLOP/s of one rank) that its steps used, counted as
            `calm estimate` does; unset where the peak is not known.
        trace_uri: Of the steps that were profiled.
    """

    schema_version: ClassVar[int] = 5
    checksum_since: ClassVar[int] = 3

    packing: Packing = "documents"
    parameters: Count
    trained_tokens: Count | None = None
    validation: dict[str, Number] = {}
    precision: Precision | None = None
    bad_steps: Count | None = None
    skipped_steps: Count | None = None
    loss_spikes: Count | None = None
    rewinds: Count | None = None
    seconds: Seconds = 0.0
    accelerator_seconds: Measured = None
    energy_joules: Measured = None
    tokens_per_second: Rate = 0.0
    loader_wait_seconds: Seconds = 0.0
    checkpoint_wait_seconds: Seconds = 0.0
    validation_seconds: Seconds = 0.0
    memory_bytes: Measured = None
    peak_tflops: Measured = None
    model_flops_utilisation: Measured = None
    trace_uri: Annotated[str | None, ORIGIN] = None

    @property
    def went_wrong(self) -> dict[str, int]:
        """What went wrong in training, by name, and how often."""
        counts = {name: getattr(self, name) for name in ("bad_steps", "skipped_steps", "loss_spikes", "rewinds")}
        return {name: count for name, count in counts.items() if count}

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Version 1 had metrics beside the numbers, two strings for display, no kinds of heads; 2 no checksum; 3 did
        not say what went wrong; 4 not what accelerators had done."""
        if version in (2, 3, 4):
            return config, results
        if version != 1:
            raise ValueError
        metrics = [name for name in results if name.startswith("validation_")]
        kept = {name: value for name, value in results.items() if name not in ("headline", "curve", *metrics)}
        kept["validation"] = {name.removeprefix("validation_"): results[name] for name in metrics}
        return cls.upgrade_config(config), kept

    @classmethod
    def upgrade_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The settings of schema version 1 in the form of this one."""
        return config


class AutoencoderFacts(ModelFacts, kind="autoencoder"):
    """A trained autoencoder.

    Attributes:
        tied: Unset; earlier versions noted here which second copies of weights a public checkpoint had.
    """

    tied: list[str] | None = None


class CalmFacts(ModelFacts, kind="calm"):
    """A trained CALM language model.

    Attributes:
        chunk_size, latent_size: K and L.
        autoencoder_uri, teacher_uri: Where they lay in training.
        teacher_flops: Of the forward passes of the teacher that it has learned from; unset where it had none.
        teacher_training_flops: Of that teacher's own training; unset where nobody here knows.
    """

    chunk_size: Annotated[int, Field(ge=1, le=2**20)]
    latent_size: Annotated[int, Field(ge=1, le=2**20)]
    autoencoder_uri: Annotated[str, ORIGIN] = ""
    teacher_uri: Annotated[str, ORIGIN] = ""
    teacher_flops: Number | None = None
    teacher_training_flops: Number | None = None

    @classmethod
    def upgrade_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The head was a name, and its settings stood beside those of the backbone."""
        model = dict(config["model"])
        head = {"kind": model.pop("head"), "num_layers": model.pop("num_head_layers")}
        head["model_samples"] = model.pop("model_samples")
        own = {
            "energy": {"noise_size": "noise_size", "target_samples": "target_samples", "energy_alpha": "alpha"},
            "diffusion": {"diffusion_steps": "diffusion_steps", "sampling_steps": "sampling_steps"},
            "flow": {"sampling_steps": "sampling_steps"},
        }
        head |= {new: model[old] for old, new in own[head["kind"]].items()}
        others = {old for names in own.values() for old in names}
        return config | {"model": {k: v for k, v in model.items() if k not in others} | {"head": head}}


class TransformerFacts(ModelFacts, kind="transformer"):
    """A trained token-level Transformer."""


class ExportFacts(Facts, kind="export"):
    """A model in the public format; that of a CALM model holds its autoencoder's folder."""
