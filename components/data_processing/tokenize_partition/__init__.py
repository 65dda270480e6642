from components.data_processing.tokenize_partition.component import tokenize_partition

__all__ = ["tokenize_partition"]
