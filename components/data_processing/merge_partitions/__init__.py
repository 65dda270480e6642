from components.data_processing.merge_partitions.component import merge_partitions

__all__ = ["merge_partitions"]
