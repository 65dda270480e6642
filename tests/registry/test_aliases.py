"""When an alias moves, in a real MLflow store; the versions have scores and no files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from calm_core.config import RegistryConfig
from calm_core.registry.aliases import PROMOTION_TAG, SCORE_TAG, Aliases, Measured, Promotion

PROTOCOL: dict[str, str | int] = {"dataset": "a" * 64, "samples": 8, "positions": 100}
OTHER_TEXT = PROTOCOL | {"dataset": "b" * 64}


class Registry:
    """The model `calm`, whose versions are all whole, less those that are named as broken."""

    def __init__(self) -> None:
        self.client = MlflowClient()
        self.client.create_registered_model("calm")
        self.broken: set[str] = set()

    def version(self) -> str:
        return str(self.client.create_model_version("calm", "file:///nowhere").version)

    def aliases(self, promote: str = "better") -> Aliases:
        config = RegistryConfig.model_validate({"promote": promote})
        return Aliases(config, lambda number: number not in self.broken)

    def register(
        self, score: float, protocol: dict[str, str | int] = PROTOCOL, promote: str = "better", number: str = ""
    ) -> Promotion:
        number = number or self.version()
        promotion = self.aliases(promote).promote(number, Measured(score, protocol))
        assert self.client.get_model_version("calm", number).tags[PROMOTION_TAG] == promotion.reason
        assert promotion.promoted == (self.champion == number)
        return promotion

    @property
    def champion(self) -> str | None:
        aliases = self.client.get_registered_model("calm").aliases
        return str(aliases["champion"]) if "champion" in aliases else None


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    yield Registry()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


def test_the_first_version_becomes_champion_whatever_its_score(registry: Registry) -> None:
    assert registry.register(0.0) == Promotion(True, "champion, since no version was")


def test_the_alias_moves_to_a_better_score_alone(registry: Registry) -> None:
    registry.register(12.3)
    assert registry.register(18.417).reason == "champion instead of version 1 (18.42 against 12.30)"
    assert registry.register(12.3).reason == "champion stays with version 2 (18.42 against 12.30)"
    assert not registry.register(18.417).promoted  # equal
    assert registry.champion == "2"


def test_the_same_model_registered_again_moves_nothing_back(registry: Registry) -> None:
    """As an old command does whose stages all come from the cache."""
    registry.register(12.3)
    registry.register(18.4)
    assert registry.register(12.3, number="1").reason == "champion stays with version 2 (18.40 against 12.30)"
    assert registry.register(18.4, number="2") == Promotion(True, "champion already")


def test_a_score_on_other_text_is_not_compared(registry: Registry) -> None:
    registry.register(12.3)
    said = registry.register(99.0, OTHER_TEXT | {"samples": 4}).reason
    assert said == (
        "champion stays with version 1, which was scored with another dataset, samples; this one is models:/calm/2, "
        "and with --set registry.promote=always it becomes champion"
    )
    assert registry.register(99.0, OTHER_TEXT, "always").promoted


def test_what_earlier_versions_left_out_of_a_protocol_is_no_difference(registry: Registry) -> None:
    registry.register(12.3)
    assert registry.register(18.4, PROTOCOL | {"packing": "documents", "start_of_text": "none"}).promoted


def test_a_champion_without_a_score_in_its_tags_stays(registry: Registry) -> None:
    """As those are that an earlier version of this library has registered; they get one when they are found again."""
    registry.client.set_registered_model_alias("calm", "champion", registry.version())
    assert registry.register(18.4).reason.startswith("champion stays with version 1, which has no score to compare")
    assert registry.register(12.3, number="1").promoted
    assert registry.register(18.5).promoted


@pytest.mark.parametrize("score", ["nan", "inf", "", "18,4", "0x10"])
def test_a_score_that_is_no_number_is_not_compared(score: str, registry: Registry) -> None:
    registry.register(12.3)
    registry.client.set_model_version_tag("calm", "1", SCORE_TAG, score)
    assert "has no score to compare with" in registry.register(18.4).reason


def test_a_score_that_says_nothing_never_promotes(registry: Registry) -> None:
    said = "since the score of this one is of no position; evaluate on more text"
    assert registry.register(50.0, PROTOCOL | {"positions": 0}).reason == f"no version is champion, {said}"
    registry.register(12.3)
    assert not registry.register(float("nan")).promoted
    registry.register(50.0, PROTOCOL | {"positions": 0}, "always")
    assert "which has a score of no position; this one is models:/calm/5" in registry.register(1.0).reason


def test_always_and_never(registry: Registry) -> None:
    assert registry.register(9.0, promote="never").reason == "no version is champion, since registry.promote is never"
    registry.register(12.3)
    assert registry.register(18.4, promote="never").reason == (
        "champion stays with version 2, since registry.promote is never"
    )
    assert registry.register(1.0, promote="always").reason == (
        "champion instead of version 2, since registry.promote is always"
    )


def test_a_champion_that_is_deleted_or_cannot_be_loaded_gives_way(registry: Registry) -> None:
    registry.register(18.4)
    registry.client.delete_model_version("calm", "1")
    assert registry.register(12.3) == Promotion(True, "champion, since no version was")
    registry.broken.add("2")
    assert registry.register(1.0).reason == "champion instead of version 2, which cannot be loaded"


@pytest.mark.parametrize("first", [None, 5.0])
def test_of_two_registered_at_once_the_better_one_stays(first: float | None, registry: Registry) -> None:
    """The better one is registered as a whole between the worse one's look at the alias and its move."""
    if first is not None:
        registry.register(first)
    slow, before = registry.aliases(), registry.champion
    point: Callable[[str], None] = slow._point
    better: list[str] = []

    def another_first(number: str) -> None:
        if not better:
            better.append(registry.version())
            assert registry.champion == before
            assert registry.aliases().promote(better[0], Measured(18.4, PROTOCOL)).promoted
        point(number)

    slow._point = another_first  # type: ignore[method-assign]
    outdone = slow.promote(registry.version(), Measured(12.3, PROTOCOL))
    assert outdone == Promotion(False, f"champion stays with version {better[0]} (18.40 against 12.30)")
    assert registry.champion == better[0]


def test_what_somebody_has_moved_back_by_hand_is_not_moved_again(registry: Registry) -> None:
    registry.register(5.0)
    registry.register(18.4)
    registry.client.set_registered_model_alias("calm", "champion", "1")
    assert registry.register(12.3).reason == "champion instead of version 1 (12.30 against 5.00)"
