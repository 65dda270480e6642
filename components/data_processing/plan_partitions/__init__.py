from components.data_processing.plan_partitions.component import plan_partitions

__all__ = ["plan_partitions"]
