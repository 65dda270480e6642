"""Names that point to a version of a registered model."""


def point_alias(model_name: str, alias: str, version: str) -> None:
    """Let an alias of a registered model point to a version, wherever it pointed before."""
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    MlflowClient().set_registered_model_alias(model_name, alias, version)
