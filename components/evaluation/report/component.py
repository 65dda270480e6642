from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    autoencoder_model: dsl.Input[dsl.Model],
    calm_model: dsl.Input[dsl.Model],
    evaluation_report: dsl.Input[dsl.Artifact],
    registration: dsl.Input[dsl.Artifact],
    run_report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    baseline_report: dsl.Input[dsl.Artifact] = None,  # Kubeflow's form of an optional input
) -> None:
    """Write the page about the run: what was trained, whether it is better, and how one knows.

    Args:
        code_version: Version of the code.
        dataset: The dataset of `merge_partitions`.
        autoencoder_model: The model of `train_autoencoder`.
        calm_model: The model of `train_calm`.
        evaluation_report: The scores of `evaluate`.
        registration: What `register_model` has decided.
        run_report: The verdict, and report.html.
        page: The same page, where Kubeflow shows it.
        baseline_report: The scores of the Transformer of the same run.
    """
    from calm_core.report.stage import report
    from components.body import describe, place_of, show, stage

    with stage(code_version):
        artifact = report(
            dataset.uri,
            autoencoder_model.uri,
            calm_model.uri,
            evaluation_report.uri,
            registration.uri,
            place_of(run_report),
            baseline_evaluation_uri=baseline_report.uri if baseline_report else "",
        )
        describe(run_report, artifact, {"verdict": artifact.facts.headline})
        show(page, artifact.read(artifact.facts.page.path))
