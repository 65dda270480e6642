from components.evaluation.evaluate.component import evaluate

__all__ = ["evaluate"]
