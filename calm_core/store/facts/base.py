"""What all facts have in common, and the types of their values."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from calm_core.store.storage import is_plain_path

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = ".calm-unfinished"
"""Lies beside the files of an artifact until its manifest does; holds its kind."""

Part = Literal["results", "origins", "timings"]
ORIGIN: Part = "origins"
TIMING: Part = "timings"


def _plain(path: str) -> str:
    if not is_plain_path(path):
        raise ValueError("is no plain path inside the folder")
    return path


Count = Annotated[int, Field(ge=0, le=2**53)]  # exact as a JSON number everywhere
FilePath = Annotated[str, AfterValidator(_plain)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, TIMING, Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[float | None, TIMING, Field(ge=0, allow_inf_nan=False)]  # None where it was not
Precision = Annotated[str, Field(pattern=r"^(fp32|bf16|bf16-mixed)(, then (fp32|bf16|bf16-mixed))*$")]
Split = Literal["train", "validation"]
Packing = Literal["documents", "contiguous"]
SPLITS: tuple[Split, ...] = ("train", "validation")
LENGTH_BINS = 33  # 2^32 tokens are more than a document may have
ROUNDING = 1e-6


class Record(BaseModel):
    """Values that are validated when they are written, and again when they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Record):
    """One file of an artifact: path relative to its folder, size in bytes, SHA-256 as hex."""

    path: FilePath
    size: Count
    sha256: Sha256


class Facts(Record):
    """Base of the kinds of artifacts; a subclass names its kind.

    Example:
        >>> class ScanFacts(Facts, kind="scan"):
        ...     documents: int

    Attributes:
        checksum_since: The schema version from which on a manifest carries its own checksum.
    """

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 2
    checksum_since: ClassVar[int] = 2
    of_kind: ClassVar[dict[str, type["Facts"]]] = {}

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind
            Facts.of_kind[kind] = cls

    @classmethod
    def read(cls, parts: Mapping[Part, Mapping[str, Any]]) -> Self:
        """The facts of a manifest's parts.

        Raises:
            ValidationError: A value is missing, unknown, or out of its range.
        """
        values = {
            name if cls._part_of(name) == part else f"{part}.{name}": value
            for part, named in parts.items()
            for name, value in named.items()
        }
        return cls.model_validate(values, strict=True)

    @property
    def paths(self) -> list[str]:
        """Files of the artifact that the facts name; the manifest lists all of them."""
        return []

    @property
    def aside(self) -> list[FileEntry]:
        """Files that are of one run, as times are: what is written here vouches for them, and the digest leaves them
        out."""
        return []

    def part(self, part: Part) -> dict[str, Any]:
        """The values that belong to one part of the manifest, as JSON values; unset ones are left out."""
        return self.model_dump(mode="json", include=self.names_of(part), exclude_none=True)

    @classmethod
    def names_of(cls, part: Part) -> set[str]:
        """The names of the values that belong to one part."""
        return {name for name in cls.model_fields if cls._part_of(name) == part}

    @classmethod
    def _part_of(cls, name: str) -> Part:
        field = cls.model_fields.get(name)
        marks = field.metadata if field else []
        return ORIGIN if ORIGIN in marks else TIMING if TIMING in marks else "results"

    @classmethod
    def upgrade(
        cls, version: int, config: dict[str, Any], results: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config and results of an earlier schema version in the form of this one.

        Version 1 lacked nothing but the manifest's checksum.

        Raises:
            ValueError: That version is not known.
        """
        if version != 1:
            raise ValueError
        return config, results


def require_sum(name: str, total: int, parts_name: str, parts: Iterable[int]) -> None:
    """Raise a ValueError where a total is not the sum of its parts."""
    if total != (found := sum(parts)):
        raise ValueError(f"{name} ({total}) are not the {parts_name} together ({found})")


def require_at_most(name: str, part: int, whole_name: str, whole: int) -> None:
    """Raise a ValueError where a part is more than the whole."""
    if part > whole:
        raise ValueError(f"{name} ({part}) are more than {whole_name} ({whole})")


def require_once(names: Iterable[str]) -> None:
    """Raise a ValueError where a name is there twice."""
    (name, count), *_ = [*Counter(names).most_common(1), ("", 1)]
    if count > 1:
        raise ValueError(f"{name} is named {count} times")
