from components.data_processing.find_duplicates.component import find_duplicates

__all__ = ["find_duplicates"]
