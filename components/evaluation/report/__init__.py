from components.evaluation.report.component import report

__all__ = ["report"]
