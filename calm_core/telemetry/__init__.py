"""What a stage tells while it works: progress, and a run in MLflow."""
