from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    evaluation: dict[str, Any],
    seed: int,
    checkpoint_root: str,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation_report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    autoencoder_model: dsl.Input[dsl.Model] = None,  # Kubeflow's form of an optional input
) -> None:
    """Score a language model with BrierLM on held-out text, and let it write.

    Args:
        evaluation: Settings of the protocol (`EvaluationConfig`).
        seed: Seed of everything random.
        checkpoint_root: URL of the folder where an interrupted evaluation finds what it has measured.
        code_version: Version of the code, part of the cache key.
        dataset: The dataset of `merge_partitions`.
        model: The model of `train_calm` or of `train_transformer`.
        evaluation_report: Protocol, scores with intervals, samples, and report.html.
        metrics: The scores.
        page: The same report, where Kubeflow shows it.
        autoencoder_model: The autoencoder of a CALM model.
    """
    from calm_core.config import EvaluationConfig
    from calm_core.evaluation.report import PAGE_NAME
    from calm_core.evaluation.stage import evaluate
    from components.body import describe, log_metrics, place_of, root_of, settings, show, stage

    with stage(code_version):
        artifact = evaluate(
            settings(EvaluationConfig, evaluation),
            dataset.uri,
            model.uri,
            place_of(evaluation_report),
            seed=seed,
            autoencoder_uri=autoencoder_model.uri if autoencoder_model else "",
            checkpoint_root=root_of(checkpoint_root, evaluation_report, "checkpoint"),
        )
        facts = artifact.facts
        scores = {"brierlm": facts.brierlm.value} | {f"brier_{n}": term.value for n, term in facts.brier.items()}
        if facts.autoencoder_accuracy is not None:
            scores["autoencoder_accuracy"] = facts.autoencoder_accuracy
        describe(evaluation_report, artifact, {"brierlm": facts.brierlm.value})
        log_metrics(metrics, scores)
        show(page, artifact.read(PAGE_NAME))
