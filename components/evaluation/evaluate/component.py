from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    evaluation: dict[str, Any],
    seed: int,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    autoencoder_model: dsl.Input[dsl.Model],
    calm_model: dsl.Input[dsl.Model],
    evaluation_report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Score the language model with BrierLM on held-out text, and let it write.

    Args:
        evaluation: Settings of the protocol (`EvaluationConfig`).
        seed: Seed of everything random.
        code_version: Version of the code, part of the cache key.
        dataset: The dataset of `merge_partitions`.
        autoencoder_model: The model of `train_autoencoder`.
        calm_model: The model of `train_calm`.
        evaluation_report: Protocol, scores with intervals, samples, and report.html.
        metrics: The headline scores.
    """
    from calm_core.config import EvaluationConfig, parse_section
    from calm_core.evaluation.stage import evaluate
    from components.body import describe, log_metrics, stage

    with stage(code_version):
        artifact = evaluate(
            parse_section(EvaluationConfig, evaluation),
            dataset.uri,
            autoencoder_model.uri,
            calm_model.uri,
            evaluation_report.uri,
            seed=seed,
        )
        results = artifact.manifest.results
        scores = {"brierlm": results["brierlm"]["value"], "autoencoder_accuracy": results["autoencoder_accuracy"]}
        describe(evaluation_report, artifact, scores)
        log_metrics(metrics, scores)
