"""Ways to a temperature below 1 for models that can only draw samples, one class each; at temperature 1 all are plain.

`exact` is P^(1/T), `batch` nears it; the others are heuristics that cost little. docs/quality.md compares them.
"""
