from components.data_processing.train_tokenizer.component import train_tokenizer

__all__ = ["train_tokenizer"]
