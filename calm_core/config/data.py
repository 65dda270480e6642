"""Settings of preparing data."""

from typing import Literal, Self

from pydantic import Field, model_validator

from calm_core.config.base import Fraction, Name, Section, Uri

MOST_PARTITIONS = 4096
LONGEST_DOCUMENT = 2**31 - 1
"""Bytes of a text in Arrow's columns; one is held in memory."""
LARGEST_GROUP = 2**28
"""Tokens, which take 1 GiB."""


class DataConfig(Section):
    """Sources of text and the shape of the shards."""

    sources: tuple[Uri, ...] = Field(
        (),
        max_length=10_000,
        description="paths, globs or fsspec URLs of .jsonl, .jsonl.gz, .jsonl.zst, .parquet and .txt files, and of "
        "folders that Hugging Face's datasets has saved",
    )
    text_field: Name = Field("text", min_length=1, description="the field or column that holds the text")
    partitions: int = Field(
        2, ge=1, le=MOST_PARTITIONS, description="parts of the sources that are prepared side by side"
    )
    extends: Uri = Field("", description="a dataset that is taken over whole; only sources that it lacks are read")
    replace_changed: bool = Field(
        False, description="with extends: prepare all sources anew when one changed under its name"
    )
    damaged_files: Literal["fail", "reject"] = Field(
        "fail", description="reject: keep what comes before the damage in a truncated or corrupt file, count one reject"
    )
    unicode_normalization: Literal["none", "NFC", "NFKC"] = Field("none", description="form that every text is put in")
    validation_fraction: float = Field(
        0.05,
        gt=0,
        le=1,
        description="share of documents held out, by a hash of the text; 1: all of them, a set to score models on",
    )
    near_duplicate_threshold: float = Field(
        0.0,
        ge=0,
        le=0.95,
        description="drop documents about this similar to an earlier one (Jaccard, MinHash), 0.5 to 0.95; 0: off",
    )
    sequence_length: int = Field(512, ge=2, le=2**24, description="tokens in a sequence")
    packing: Literal["documents", "contiguous"] = Field(
        "documents",
        description="documents: each ends with an end-of-text token and begins on a multiple of document_alignment; "
        "contiguous: as the public code packs, no end, no padding, chunks straddle documents, the rest that fills no "
        "sequence is left out",
    )
    start_of_text: bool = Field(
        False, description="each document begins with the tokenizer's start-of-text token; contiguous needs it"
    )
    document_alignment: int = Field(
        8, ge=1, le=2**24, description="packing documents: documents begin on a multiple of this many tokens"
    )
    rows_per_group: int = Field(256, ge=1, le=2**20, description="sequences in a Parquet row group")
    rows_per_shard: int = Field(
        16384, ge=1, le=2**30, description="sequences in a Parquet file, a multiple of rows_per_group"
    )
    min_document_bytes: int = Field(1, ge=1, le=LONGEST_DOCUMENT, description="a shorter document is rejected")
    max_document_bytes: int = Field(10_000_000, ge=1, le=LONGEST_DOCUMENT, description="a longer document is rejected")
    txt_document_bytes: int = Field(
        16384, ge=1, le=LONGEST_DOCUMENT, description="a longer .txt file is cut into documents of about this size"
    )
    max_reject_fraction: Fraction = Field(0.1, description="share of rejected documents above which preparing fails")

    @model_validator(mode="after")
    def _units_are_whole(self) -> Self:
        aligned = [("sequence_length", "document_alignment")] if self.packing == "documents" else []
        for whole, unit in (*aligned, ("rows_per_shard", "rows_per_group")):
            if getattr(self, whole) % getattr(self, unit):
                raise ValueError(
                    f"{whole} ({getattr(self, whole)}) must be a multiple of {unit} ({getattr(self, unit)})"
                )
        if self.sequence_length * self.rows_per_group > LARGEST_GROUP:
            raise ValueError(
                f"sequence_length ({self.sequence_length}) x rows_per_group ({self.rows_per_group}) must not exceed "
                f"{LARGEST_GROUP} tokens: a row group is held in memory"
            )
        if self.packing == "contiguous" and not self.start_of_text:
            raise ValueError(
                "packing contiguous needs start_of_text=true: nothing else would tell where a document ends"
            )
        if 0 < self.near_duplicate_threshold < 0.5:
            raise ValueError(
                f"near_duplicate_threshold ({self.near_duplicate_threshold}) must be 0 (off) or 0.5 and more; "
                "below it, most of what is found is no near-duplicate"
            )
        if self.min_document_bytes > self.max_document_bytes:
            raise ValueError(
                f"min_document_bytes ({self.min_document_bytes}) must not exceed max_document_bytes "
                f"({self.max_document_bytes})"
            )
        return self


class TokenizerConfig(Section):
    """Byte-level BPE, trained on the training documents; or one that exists."""

    vocab_size: int = Field(2048, ge=258, le=2**24, description="tokens, the 256 bytes and 2 special tokens included")
    max_training_bytes: int = Field(
        100_000_000, ge=1, le=2**40, description="bytes of training text that the merges are learned from"
    )
    source: Uri = Field(
        "",
        description="a tokenizer.json, a Hugging Face folder, or a Llama-3 tokenizer.model, taken instead of training "
        "one; vocab_size is then its own",
    )
    pad_token: Name | None = Field(None, description="of that tokenizer; unset: as its files say")
    eos_token: Name | None = Field(None, description="of that tokenizer, ends a document; unset: as its files say")
    bos_token: Name | None = Field(
        None, description="of that tokenizer, begins a document with data.start_of_text; unset: as its files say"
    )
