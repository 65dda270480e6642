"""What each rank runs under torchrun: `python -m calm_core.training.worker SPEC.json`."""

import json
import os
import sys
import time
from pathlib import Path

import deepspeed
import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from calm_core.config import AutoencoderConfig, CalmConfig, LanguageModelTrainingConfig, TransformerConfig
from calm_core.data.reading.loader import Mixture, TokenDataset, open_dataset
from calm_core.errors import CalmError
from calm_core.models.autoencoders.mlp import Autoencoder
from calm_core.models.backbone import Backbone
from calm_core.models.calm import Calm
from calm_core.models.heads.denoising import DenoisingHead
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise, derive_seed
from calm_core.models.transformer import Transformer
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter, digest_of
from calm_core.telemetry.mlflow_run import Run
from calm_core.training.launcher import ERROR_NAME, WorkerSpec
from calm_core.training.loop import Trainer, headline_text
from calm_core.training.tasks import AutoencoderTask, CalmTask, Task, TransformerTask
from calm_core.weights.load import WEIGHTS_NAME, load_autoencoder

_SCALE_SEQUENCES = 64  # training sequences that the scale of the latents is measured on


def main() -> None:
    """Train, write the artifact, and leave one line for the launcher if that fails."""
    spec_path = Path(sys.argv[1])
    spec = WorkerSpec.model_validate_json(spec_path.read_text())
    try:
        _start_distributed()
        _train(spec)
    except CalmError as error:
        (spec_path.parent / ERROR_NAME).write_text(str(error))
        sys.exit(1)
    except Exception as error:  # the launcher shows this line; the traceback goes to the log
        (spec_path.parent / ERROR_NAME).write_text(f"{type(error).__name__}: {error}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _start_distributed() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # DeepSpeed would compile this op for CPU ranks on one node, which fails on a machine without a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    cuda = torch.cuda.is_available()
    torch.use_deterministic_algorithms(not cuda)  # on CPU equal inputs give equal bytes
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)


def _train(spec: WorkerSpec) -> None:
    config = spec.config
    dataset, validation = open_dataset(spec.dataset_uri, "train"), open_dataset(spec.dataset_uri, "validation")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_available())
    torch.manual_seed(spec.seed)  # initial weights
    task, parents = _make_task(spec, dataset, torch.bfloat16 if bf16 else torch.float32)
    settings = config.model_dump(mode="json") | {"seed": spec.seed}
    key = digest_of({"kind": spec.kind, "config": settings, "parents": parents})[:16]
    trainer = Trainer(
        task,
        dataset,
        validation,
        config,
        seed=spec.seed,
        stage=spec.stage,
        run=Run.of_id(spec.run_id) if dist.get_rank() == 0 else Run(),
        checkpoints=storage.join(spec.checkpoint_root, f"{spec.kind}-{key}"),
        bf16=bf16,
    )
    started = time.monotonic()
    trainer.fit()
    weights = trainer.weights()
    validated = f"validation_{task.headline}"
    if dist.get_rank() == 0:
        with ArtifactWriter(spec.output_uri, spec.kind, settings, parents) as writer:
            writer.write(WEIGHTS_NAME, safetensors.torch.save(weights))
            writer.write("tokenizer.json", dataset.tokenizer.to_bytes())
            writer.write("curves.jsonl", "".join(json.dumps(record) + "\n" for record in trainer.curves).encode())
            writer.results |= {
                "parameters": sum(p.numel() for p in task.model.parameters()),
                "vocab_size": dataset.vocab_size,
                "pad_id": dataset.pad_id,
                "eos_id": dataset.eos_id,
                "trained_tokens": config.steps * config.global_batch_size * dataset.sequence_length,
                **{name: value for name, value in trainer.curves[-1].items() if name.startswith("validation_")},
                "curve": task.headline,
                "headline": headline_text(validated, trainer.curves[-1][validated]),
            }
            if isinstance(task, CalmTask):
                writer.results |= {"chunk_size": task.model.chunk_size, "latent_size": task.model.latent_size}
            writer.timings |= {
                "seconds": time.monotonic() - started,
                "tokens_per_second": trainer.tokens_per_second,
                "loader_wait_seconds": trainer.loader_wait_seconds,
            }
    trainer.checkpointer.discard()


def _make_task(spec: WorkerSpec, dataset: TokenDataset | Mixture, dtype: torch.dtype) -> tuple[Task, dict[str, str]]:
    """The model to train, from the run's seed, and the digests of what it is trained on."""
    parents = {"dataset": dataset.digest}
    if isinstance(spec.config, AutoencoderConfig):
        return AutoencoderTask(Autoencoder(spec.config.model, dataset.vocab_size), dataset.pad_id), parents
    if isinstance(spec.config, TransformerConfig):
        baseline = Transformer(spec.config.model, dataset.vocab_size)
        _set_up(baseline.transformer, spec.config)
        return TransformerTask(baseline, dataset.pad_id), parents
    assert isinstance(spec.config, CalmConfig)
    artifact = Artifact(spec.autoencoder_uri, "autoencoder")
    autoencoder = load_autoencoder(artifact).to(_device(), dtype)
    freeze(autoencoder)
    shape = autoencoder.config
    model = Calm(spec.config.model, dataset.vocab_size, shape.chunk_size, shape.latent_size)
    _set_up(model.transformer, spec.config)
    task = CalmTask(model, autoencoder, dataset.pad_id)
    if isinstance(model.mlp_generator, DenoisingHead):
        rows = dataset.rows(np.arange(min(_SCALE_SEQUENCES, dataset.num_sequences)))
        noise = SequenceNoise([derive_seed(spec.seed, "latent scale", i) for i in range(len(rows))], _device())
        model.mlp_generator.fit_scale(task.latents(torch.from_numpy(rows).to(_device()), noise))
    return task, parents | {"autoencoder": artifact.digest}


def _set_up(backbone: Backbone, config: LanguageModelTrainingConfig) -> None:
    backbone.activation_checkpointing = config.activation_checkpointing
    if config.compile:
        for layer in backbone.layers:
            layer.compile()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


if __name__ == "__main__":
    main()
