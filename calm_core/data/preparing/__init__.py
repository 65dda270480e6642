"""From sources to a dataset, a partition at a time."""
