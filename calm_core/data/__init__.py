"""From sources of text to sequences of tokens in Parquet shards, and back into batches."""
