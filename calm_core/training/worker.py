"""What each rank runs under torchrun: ``python -m calm_core.training.worker SPEC_URI``.

Exit codes: 0 finished, 1 failed, 2 wrong settings, 75 interrupted (a checkpoint is saved; run again).
"""

from calm_core.telemetry.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent()  # first of all: the imports take seconds

import faulthandler
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import deepspeed
import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from calm_core.config import AutoencoderConfig
from calm_core.data.reading.dataset import open_dataset
from calm_core.data.reading.loader import Loader
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import EXIT_FAILED, CalmError, StorageError, first_line
from calm_core.scaling.cost import training_flops_per_token
from calm_core.shown import SafeStream
from calm_core.store.facts import OutcomeFacts
from calm_core.telemetry.mlflow_run import FLUSH_SECONDS, Run
from calm_core.telemetry.progress import report
from calm_core.telemetry.sinks import Curves, JsonlSink, MetricSink, MlflowSink, ProgressSink, Sinks
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.energy import energy_meter
from calm_core.training.engine import Engine, precision_of
from calm_core.training.initial_weights import start_from
from calm_core.training.job import Job, TrainingSpec, open_inputs
from calm_core.training.loop import Trainer
from calm_core.training.meter import CostMeter, Peak, Spent, peak_tflops
from calm_core.training.profiler import StepProfiler
from calm_core.training.tasks.base import Inputs, Task
from calm_core.training.tasks.make import make_task
from calm_core.training.validation import Validator
from calm_core.training.watchdog import Watchdog
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.initial import INITIAL_WEIGHTS
from calm_core.weights.load import WEIGHTS_NAME, settings_of

_LOST = re.compile("Connection (closed|reset) by|Broken pipe|remote process exited|Socket closed")
"""What gloo and NCCL say of another rank that has gone."""
_ADDRESS = re.compile(r"\[([0-9a-f.:]+)\]:\d+")


@record
def main(spec_uri: str) -> None:
    """Train and write the artifact, or leave one line that says why not."""
    faulthandler.enable()  # where C code crashes, the log shows the stacks
    job, spec = Job.read(spec_uri)
    try:
        with Watchdog(spec.config.stuck_after_seconds) as watchdog:
            _start_distributed()
            watchdog.alive()
            with energy_meter(_device(), int(os.environ["LOCAL_RANK"])) as energy:
                _train(spec, job, watchdog, CostMeter(energy))
    except Exception as error:  # whatever it was, whoever waits for the ranks gets one line; the error passes on
        told = _explained(error, spec.stage)
        with suppress(StorageError):  # it must not hide the error, which elastic's own file tells too
            job.write_outcome(_failure(told, spec))
        if told is error:
            raise
        raise told from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _explained(error: Exception, stage: str) -> Exception:
    """The end of another rank in our words: where this one met it explains nothing."""
    if not (isinstance(error, RuntimeError) and _LOST.search(str(error))):
        return error
    address = _ADDRESS.search(str(error))
    where = f" at {address[1]}" if address else ""
    return CalmError(
        f"{stage}: the connection to a rank{where} was lost: its process or its machine has ended; run the same "
        "command again, on every node, to continue from the last checkpoint",
        can_pass=True,
    )


def _failure(error: Exception, spec: TrainingSpec) -> OutcomeFacts:
    if isinstance(error, CalmError):
        return OutcomeFacts(message=str(error), exit_code=error.exit_code, can_pass=error.can_pass)
    return OutcomeFacts(message=f"{spec.stage}: {type(error).__name__}: {first_line(error)}", exit_code=EXIT_FAILED)


def _start_distributed() -> None:
    if threads := os.environ.get("OMP_NUM_THREADS"):  # plain torchrun leaves it unset for a single rank
        torch.set_num_threads(int(threads))
    # DeepSpeed would compile this op for CPU ranks on one node, which fails on a machine without a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    cuda = torch.cuda.is_available()
    # On CPU equal inputs give equal bytes. `use_deterministic_algorithms` would import the compiler, for a second.
    torch.set_deterministic_debug_mode("default" if cuda else "error")
    # It would fill what is allocated, to show who reads before writing: 1 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # It uses names that torch is giving up, which would be told in every step, and our AdamW, which it has not tested.
    warnings.filterwarnings("ignore", r"`torch\.distributed", FutureWarning)
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)


def _train(spec: TrainingSpec, job: Job, watchdog: Watchdog, costs: CostMeter) -> None:
    inputs = open_inputs(spec, _device(), torch.float32 if precision_of(spec.config) == "fp32" else torch.bfloat16)
    torch.manual_seed(spec.seed)  # initial weights
    task = make_task(spec.config, inputs)
    if spec.config.initial_weights:
        start_from(task.model, spec.config, spec.parents[INITIAL_WEIGHTS], inputs.device)
    with _mlflow_run(spec) as run:
        trainer = _make_trainer(spec, job, task, inputs, run, watchdog, costs)
        watchdog.alive()
        with trainer.stop.listening(), trainer.checkpointer as checkpointer:  # after the last step nothing stops it
            trainer.fit()
            checkpointer.finish()  # before the artifact, which may fail: the last step is saved
            weights = trainer.engine.whole_weights()
            spent = costs.spent(inputs.device)
            watchdog.stop()
            if dist.get_rank() == 0:
                job.require_lock()
                _write(spec, trainer, inputs, weights, spent)
                with suppress(StorageError):  # the model is there, whatever becomes of the words
                    job.write_outcome(OutcomeFacts(message=trainer.result()))
            dist.barrier()  # torchrun of another node waits only 300 s for this one's ranks to end


@contextmanager
def _mlflow_run(spec: TrainingSpec) -> Iterator[Run]:
    """The stage's run in MLflow, of rank 0 alone, which sends to it by itself where the stage is on another machine."""
    run = Run(spec.run_id if dist.get_rank() == 0 else "", spec.stage)
    try:
        yield run
    finally:
        run.close(FLUSH_SECONDS)


def _make_trainer(
    spec: TrainingSpec, job: Job, task: Task[Any], inputs: Inputs, run: Run, watchdog: Watchdog, costs: CostMeter
) -> Trainer:
    config, rank, curves = spec.config, dist.get_rank(), Curves()
    engine = Engine(task.model, config)

    def tell(line: str) -> None:
        report(spec.stage, note=line)

    sinks: list[MetricSink] = [ProgressSink(spec.stage, task.objective), MlflowSink(run), curves]
    if spec.points_file:
        sinks.append(JsonlSink(spec.points_file))
    return Trainer(
        task=task,
        engine=engine,
        loader=Loader(
            inputs.dataset, config.global_batch_size, seed=spec.seed, rank=rank, world_size=dist.get_world_size()
        ),
        validator=Validator(task, engine, open_dataset(spec.dataset_uri, "validation"), config, spec.seed),
        checkpointer=Checkpointer(job.uri, engine, config, tell=tell, require=job.require_lock, alive=watchdog.alive),
        sinks=Sinks(sinks if rank == 0 else []),
        curves=curves,
        config=config,
        seed=spec.seed,
        stage=spec.stage,
        folder=job.uri,
        tell=tell if rank == 0 else lambda line: None,
        profiler=StepProfiler(config.profile_steps if rank == 0 else None, spec.output_uri, tell),
        costs=costs,
        watchdog=watchdog,
        peak=_peak(spec, inputs),
        must_resume=spec.resume,
    )


def _peak(spec: TrainingSpec, inputs: Inputs) -> Peak | None:
    if not (tflops := peak_tflops(spec.config, inputs.device)):
        return None
    autoencoder = settings_of(inputs.autoencoder, AutoencoderConfig) if inputs.autoencoder else None
    dataset = inputs.dataset
    flops = training_flops_per_token(spec.config, autoencoder, dataset.vocab_size, dataset.sequence_length)
    return Peak(tflops, 1e12 * tflops * dist.get_world_size() / flops)


def _write(
    spec: TrainingSpec, trainer: Trainer, inputs: Inputs, weights: dict[str, torch.Tensor], spent: Spent
) -> None:
    task, dataset, last = trainer.task, inputs.dataset, trainer.curves.records[-1]
    if wrong := next((name for name, value in weights.items() if not value.isfinite().all()), ""):
        raise CalmError(f"{spec.stage}: the trained weights are not finite ({wrong}); lower learning_rate")
    with spec.writer(task.facts) as writer:
        writer.write(WEIGHTS_NAME, safetensors.torch.save(weights))
        writer.write(TOKENIZER_NAME, dataset.tokenizer.to_bytes())
        writer.write(CURVES_NAME, trainer.curves.to_bytes())
        writer.facts = task.facts(
            # Of the whole weights: those that ZeRO 3 has shared out among the ranks have no numbers here.
            parameters=sum(weights[name].numel() for name, _ in task.model.named_parameters()),
            vocab_size=dataset.vocab_size,
            pad_id=dataset.pad_id,
            eos_id=dataset.eos_id,
            bos_id=dataset.bos_id,
            packing=dataset.packing,
            trained_tokens=spec.config.steps * spec.config.global_batch_size * dataset.sequence_length,
            validation=_validation(last),
            precision=trainer.precision,
            **trainer.guards.counts,
            **asdict(spent),
            trace_uri=trainer.profiler.trace_uri or None,
            **{name: value for name, value in trainer.meter.totals.items() if name in task.facts.model_fields},
            **task.own_facts(inputs),
        )


def _validation(record: dict[str, Any]) -> dict[str, float]:
    prefix = "validation_"
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


if __name__ == "__main__":
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    exit_code = 0
    try:
        main(sys.argv[1])
    except CalmError as error:  # whoever waits shows its line: no traceback
        exit_code = error.exit_code
    # All is written. As an interpreter ends, torch's threads of connections now and then abort the process.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)
