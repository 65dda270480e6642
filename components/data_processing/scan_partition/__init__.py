from components.data_processing.scan_partition.component import scan_partition

__all__ = ["scan_partition"]
