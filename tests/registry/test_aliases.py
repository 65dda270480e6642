"""When aliases move, in a real MLflow store; the versions have no files, and a table says which one beats which."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ClassVar

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelAlias
from mlflow.store.entities.paged_list import PagedList

from calm_core.config import RegistryConfig
from calm_core.errors import CalmError
from calm_core.registry.aliases import DECISION_TAG, EVALUATION_TAG, PROMOTION_TAG, Aliases, Decision
from calm_core.registry.gate import Contender, judge
from calm_core.store.facts import Decided, Difference, ScoreDifference


class Killed(BaseException):
    """The process ends here."""


class Registry:
    """A model of its own.

    Attributes:
        beats: Pairs of versions of which the first is significantly better; no total order.
        unknown: Versions about which only their own process can decide.
        judged: What has been compared.
    """

    def __init__(self, name: str, beats: Iterable[tuple[int, int]]) -> None:
        self.client, self.name = MlflowClient(), name
        self.client.create_registered_model(name)
        self.beats, self.unknown = set(beats), set[int]()
        self.judged: list[tuple[int, int]] = []

    def version(self, digest: str = "", **rules: Any) -> str:
        config = RegistryConfig.model_validate(rules)
        tags = Decision.begun(config).tags | ({EVALUATION_TAG: digest} if digest else {})
        return str(self.client.create_model_version(self.name, "file:///nowhere", tags=tags).version)

    def aliases(self, own: str = "", **rules: Any) -> Aliases:
        def judged(number: str, champion: str | None, rules: RegistryConfig) -> Decided | None:
            if int(number) in self.unknown and number != own:
                return None
            self.judged.append((int(number), int(champion or 0)))
            better = champion is not None and (int(number), int(champion)) in self.beats
            difference = Difference(
                brierlm=ScoreDifference(
                    value=2.0 if better else 0.5, low=-1.0, high=3.0, p_value=0.001 if better else 0.4
                ),
                brier={n: ScoreDifference(value=0.01, p_value=1.0) for n in "1234"},
                documents=30,
                positions=900,
                resamples=99,
                confidence=0.95,
            )
            return judge(rules, Contender(number), Contender(champion) if champion else None, difference)

        return Aliases(RegistryConfig.model_validate(rules | {"model_name": self.name}), judged)

    def decide(self, number: str, **rules: Any) -> Decided:
        return self.aliases(number, **rules).decide(number)

    def register(self, **rules: Any) -> Decided:
        number = self.version(**rules)
        decided = self.decide(number, **rules)
        assert self.tags(number)[PROMOTION_TAG] == decided.reason
        assert decided.promoted == (self.champion == number)
        assert self.state(number) == ("promoted" if decided.promoted else "kept")
        return decided

    def tags(self, number: str) -> dict[str, str]:
        return dict(self.client.get_model_version(self.name, number).tags)

    def state(self, number: str) -> str:
        decision = Decision.read(self.tags(number))
        return decision.state if decision else ""

    def alias(self, name: str) -> str | None:
        aliases = self.client.get_registered_model(self.name).aliases
        return str(aliases[name]) if name in aliases else None

    def point(self, number: str) -> None:
        self.client.set_registered_model_alias(self.name, "champion", number)

    @property
    def champion(self) -> str | None:
        return self.alias("champion")

    @property
    def whole_state(self) -> dict[str, Any]:
        """Aliases, and what has been decided about each version."""
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        decisions = {each.version: Decision.read(each.tags) for each in versions}
        return {
            "champion": self.champion,
            "challenger": self.alias("challenger"),
            "decisions": {version: (d.state, d.decided) if d else None for version, d in decisions.items()},
            "reasons": {each.version: each.tags.get(PROMOTION_TAG) for each in versions},
        }


_NUMBERS = itertools.count()


@pytest.fixture
def store(in_a_folder_with_a_store: None) -> Callable[..., Registry]:
    """Makes registries, each with pairs of versions of which the first beats the second."""
    return lambda *beats: Registry(f"model-{next(_NUMBERS)}", beats)


def test_the_first_version_becomes_champion(store: Callable[..., Registry]) -> None:
    registry = store()
    decided = registry.register()
    assert (decided.promoted, decided.reason, decided.champion) == (True, "champion, since there was none", "")


def test_the_champion_gives_way_to_a_significantly_better_version_alone(store: Callable[..., Registry]) -> None:
    registry = store((3, 1))
    registry.register()
    kept = registry.register()
    assert kept.reason == (
        "champion stays with version 1, since this one is not significantly better: "
        "BrierLM +0.50 [-1.00, 3.00] on 30 documents, p = 0.4, and 0.05 is asked for"
    )
    better = registry.register()
    assert better.reason == "champion instead of version 1: BrierLM +2.00 [-1.00, 3.00] on 30 documents, p = 0.001"
    assert better.champion == "1" and better.comparison and better.comparison.p_value == 0.001
    assert registry.alias("challenger") == "3"


def test_a_decision_is_made_once(store: Callable[..., Registry]) -> None:
    """As an old command does whose stages all come from the cache: no champion of old comes back."""
    registry = store((2, 1), (4, 2))
    for _ in range(3):
        registry.register()
    registry.beats |= {(1, 2), (3, 2)}  # it would be another decision now
    judged, before = list(registry.judged), registry.whole_state
    assert registry.decide("1").reason == "champion stays with version 2; this one was champion before"
    assert not registry.decide("1").promoted and not registry.decide("3").promoted
    assert registry.decide("2").promoted
    assert registry.judged == judged and registry.whole_state == before


def test_other_rules_decide_again_about_what_was_never_champion(store: Callable[..., Registry]) -> None:
    registry = store()
    registry.register()
    registry.register()
    first = Decision.read(registry.tags("2"))
    assert registry.decide("2", promote="always").reason == (
        "champion instead of version 1, since registry.promote is always"
    )
    again = Decision.read(registry.tags("2"))
    assert first and again and again.earlier == (first.decided.reason,)
    assert not registry.decide("1", promote="always").promoted and registry.champion == "2"


def test_rules_of_now_decide_about_what_others_began(store: Callable[..., Registry]) -> None:
    """As when a registration is interrupted, and its command repeated with `registry.promote=always`."""
    registry = store()
    registry.register()
    number = registry.version(promote="never")
    assert registry.decide(number, promote="always").reason.endswith("since registry.promote is always")
    assert registry.champion == number


def test_always_and_never(store: Callable[..., Registry]) -> None:
    registry = store()
    assert registry.register(promote="never").reason == "no version is champion, since registry.promote is never"
    registry.register()
    assert registry.register(promote="never").reason == (
        "champion stays with version 2, since registry.promote is never"
    )
    assert registry.register(promote="always").reason.startswith("champion instead of version 2, since")


@pytest.mark.parametrize("moved_to", ["1", None])
def test_what_somebody_has_moved_or_removed_stays_so(moved_to: str | None, store: Callable[..., Registry]) -> None:
    registry = store((2, 1), (3, 1))
    registry.register()
    registry.register()
    registry.point("1") if moved_to else registry.client.delete_registered_model_alias(registry.name, "champion")
    for number in "12":  # old commands again
        registry.decide(number)
        assert registry.champion == moved_to
    now = "champion stays with version 1" if moved_to else "no version is champion"
    assert registry.decide("2").reason == f"{now}; this one was champion before"
    assert registry.register().champion == (moved_to or "")


def test_a_champion_that_is_deleted_gives_way(store: Callable[..., Registry]) -> None:
    registry = store()
    registry.register()
    registry.client.delete_model_version(registry.name, "1")
    assert registry.register().reason == "champion, since there was none"


def test_a_version_of_earlier_code_is_decided_about_by_its_own_registration_alone(
    store: Callable[..., Registry],
) -> None:
    registry = store((2, 1), (3, 2))
    for _ in range(2):
        registry.client.create_model_version(registry.name, "file:///nowhere")
    registry.point("1")
    assert registry.register().champion == "1" and registry.state("2") == ""
    assert registry.decide("2").promoted and registry.decide("1").reason.startswith("champion stays with version 2")


def test_a_decision_tag_that_is_nothing_of_ours_is_none(store: Callable[..., Registry]) -> None:
    registry = store()
    registry.register()
    for text in ("", "{", "[]", '{"state": "best"}', '{"state": "kept", "decided": {}}', "[" * 5000):
        registry.client.set_model_version_tag(registry.name, "1", DECISION_TAG, text)
        assert Decision.read(registry.tags("1")) is None
        registry.client.set_model_version_tag(registry.name, registry.version(), DECISION_TAG, text)
    assert not registry.register().promoted


BEATS_BOTH_WAYS: dict[str, tuple[set[tuple[int, int]], str]] = {
    "only the second is better": ({(3, 1)}, "3"),
    "both are, and are alike": ({(2, 1), (3, 1)}, "2"),
    "both are, and the second more so": ({(2, 1), (3, 1), (3, 2)}, "3"),
    "in a circle": ({(2, 1), (3, 2), (1, 3)}, "3"),
}
"""Which of version 1, the champion, and versions 2 and 3 beats which, and who is champion in the end."""


def three_versions(make: Callable[..., Registry], beats: Iterable[tuple[int, int]]) -> Registry:
    """A champion, and two versions about which nothing has been decided."""
    registry = make(*beats)
    first = Decision(state="promoted", decided=Decided(promoted=True, reason="champion, since there was none"))
    registry.client.create_model_version(registry.name, "file:///nowhere", tags=first.tags)
    registry.point("1")
    registry.version()
    registry.version()
    return registry


class Memory:
    """What is asked of MLflow's client, without its database: there are thousands of calls before which to interrupt.

    Attributes:
        models: By name, tags by version, and versions by alias.
    """

    models: ClassVar[dict[str, tuple[dict[int, dict[str, str]], dict[str, str]]]] = {}
    before_call: ClassVar[Callable[[str], None]] = staticmethod(lambda name: None)

    def __getattribute__(self, name: str) -> Any:
        if name != "models":
            type(self).before_call(name)
        return super().__getattribute__(name)

    def create_registered_model(self, name: str) -> None:
        self.models[name] = ({}, {})

    def create_model_version(self, name: str, source: str, tags: dict[str, str]) -> ModelVersion:
        versions, _ = self.models[name]
        versions[len(versions) + 1] = dict(tags)
        return ModelVersion(name, str(len(versions)), 0)

    def search_model_versions(self, filter_string: str, **options: Any) -> Any:
        name = filter_string.split("'")[1]
        tags = {
            number: [ModelVersionTag(*tag) for tag in tags.items()] for number, tags in self.models[name][0].items()
        }
        return PagedList([ModelVersion(name, str(number), 0, tags=tags[number]) for number in tags], None)

    def get_registered_model(self, name: str) -> Any:
        return RegisteredModel(name, aliases=[RegisteredModelAlias(*each) for each in self.models[name][1].items()])

    def get_model_version(self, name: str, number: str) -> ModelVersion:
        found: list[ModelVersion] = self.search_model_versions(f"name = '{name}'")
        return found[int(number) - 1]

    def set_model_version_tag(self, name: str, number: str, key: str, value: str) -> None:
        self.models[name][0][int(number)][key] = value

    def set_registered_model_alias(self, name: str, alias: str, number: str) -> None:
        self.models[name][1][alias] = number


class At:
    """Does something once, before one of the calls of MLflow's client.

    Attributes:
        call: The name of that call; empty until then.
    """

    def __init__(self, place: int, do: Callable[[], object]) -> None:
        self.call, self._place, self._do, self._count = "", place, do, 0

    def __call__(self, name: str) -> None:
        self._count += 1
        if self._count == self._place:
            self.call = name
            self._do()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """Makes registries as `store` does, in memory."""
    monkeypatch.setattr(mlflow, "MlflowClient", Memory)
    monkeypatch.setattr(sys.modules[__name__], "MlflowClient", Memory)
    return lambda *beats: Registry("calm", beats)


@pytest.fixture
def before_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Lets something be called before each call of MLflow's client, with its name."""
    return lambda do: monkeypatch.setattr(Memory, "before_call", staticmethod(do))


@pytest.mark.parametrize("order", BEATS_BOTH_WAYS)
@pytest.mark.parametrize("slow", ["2", "3"])
def test_two_registered_at_once_end_alike_wherever_one_overtakes_the_other(
    order: str, slow: str, memory: Callable[..., Registry], before_call: Callable[[Callable[[str], None]], None]
) -> None:
    """One is decided about as a whole before some call of the other one, for every call."""
    beats, champion = BEATS_BOTH_WAYS[order]
    fast, expected = "3" if slow == "2" else "2", {}
    for place in itertools.count(1):
        registry = three_versions(memory, beats)
        overtaking = At(place, functools.partial(registry.decide, fast))
        before_call(overtaking)
        registry.decide(slow)
        before_call(lambda name: None)
        if not overtaking.call:
            registry.decide(fast)
        expected = expected or registry.whole_state
        assert registry.whole_state == expected, f"overtaken before call {place}, {overtaking.call}"
        assert (registry.champion, registry.alias("challenger")) == (champion, "3")
        assert {registry.state(number) for number in "123"} <= {"promoted", "kept"}
        if not overtaking.call:
            assert place > 12  # every call has had its turn
            return


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("order", [*BEATS_BOTH_WAYS][:3])
def test_whatever_a_crash_leaves_the_next_run_brings_to_the_same_end(
    order: str, memory: Callable[..., Registry], before_call: Callable[[Callable[[str], None]], None]
) -> None:
    """Killed before each call in turn; then the same registration runs again, or a later one alone."""
    beats, champion = BEATS_BOTH_WAYS[order]
    expected: dict[str, Any] = {}
    for place in itertools.count(1):
        registry = three_versions(memory, beats)
        killing = At(place, killed)
        before_call(killing)
        with suppress(Killed):
            registry.decide("2")
        before_call(lambda name: None)
        if place % 2:
            registry.decide("2")
        registry.decide("3")
        expected = expected or registry.whole_state
        assert registry.whole_state == expected, f"killed before call {place}, {killing.call}"
        assert (registry.champion, registry.alias("challenger")) == (champion, "3")
        if not killing.call:
            assert place > 12
            return


def test_who_cannot_decide_about_an_earlier_version_leaves_it_to_its_own_process(
    store: Callable[..., Registry],
) -> None:
    registry = store((2, 1), (3, 1), (2, 3))
    registry.register()
    registry.unknown.add(2)
    registry.version()
    assert registry.register().champion == "1" and registry.state("2") == "undecided"
    assert registry.decide("2").champion == "3" and registry.champion == "2"


def test_a_decision_that_took_a_while_is_about_the_champion_of_now(store: Callable[..., Registry]) -> None:
    registry = store((2, 1))
    registry.register()
    registry.client.create_model_version(registry.name, "file:///nowhere")
    number = registry.version()
    aliases = registry.aliases(number)
    judged = aliases._judge

    def slowly(number: str, champion: str | None, rules: RegistryConfig) -> Decided | None:
        decided = judged(number, champion, rules)
        registry.point("2")  # by hand, while texts are compared
        return decided

    registry.beats.add((3, 1))
    aliases._judge = slowly
    assert aliases.decide(number).champion == "2" and registry.champion == "2"


def test_a_version_that_is_registered_twice_at_once_is_decided_about_once(store: Callable[..., Registry]) -> None:
    registry = store()
    registry.version("a" * 64)
    registry.version("a" * 64)
    registry.register()
    assert [registry.state(number) for number in "123"] == ["promoted", "undecided", "kept"]


def test_by_hand_and_back(store: Callable[..., Registry]) -> None:
    registry = store((3, 1))
    for _ in range(3):
        registry.register()
    promoted = registry.aliases().promote("2", "the tone is right")
    assert promoted.reason == "champion instead of version 3, by hand: the tone is right"
    assert (registry.champion, registry.state("2"), registry.tags("2")[PROMOTION_TAG]) == (
        "2",
        "promoted",
        promoted.reason,
    )
    with pytest.raises(CalmError, match=r"^version 2 of model-[0-9]+ is champion already"):
        registry.aliases().promote("2", "again")
    assert registry.aliases().roll_back("it was not") == ("2", "3")
    assert registry.tags("2")[PROMOTION_TAG] == "rolled back to version 3: it was not"
    assert registry.aliases().roll_back("nor this") == ("3", "1") and registry.champion == "1"
    decision = Decision.read(registry.tags("2"))
    assert decision and decision.state == "rolled back" and decision.earlier[-1] == promoted.reason
    assert len(decision.earlier) == 2
    for number in "23":  # old commands again
        assert not registry.decide(number).promoted
    with pytest.raises(CalmError, match=r"no tag of model-[0-9]+ says which version was champion before version 1"):
        registry.aliases().roll_back("further")
    assert registry.champion == "1"


def test_the_way_back_does_not_lead_in_a_circle(store: Callable[..., Registry]) -> None:
    """The champions were 1, 2, and 1 again by hand; what has been rolled back does not come back."""
    registry = store((2, 1))
    registry.register()
    registry.register()
    registry.aliases().promote("1", "the old tone")
    assert registry.aliases().roll_back("it repeats itself") == ("1", "2")
    with pytest.raises(CalmError, match="which version was champion before version 2, and was not rolled back"):
        registry.aliases().roll_back("it does too")
    registry.register(promote="always")
    registry.aliases().promote("2", "the tone of 2")
    assert registry.aliases().roll_back("no") == ("2", "3")
    with pytest.raises(CalmError, match="which version was champion before version 3, and was not rolled back"):
        registry.aliases().roll_back("nor that")
    assert registry.champion == "3"


def test_nothing_moves_back_to_a_version_that_cannot_be_used(store: Callable[..., Registry]) -> None:
    registry = store((2, 1))
    registry.register()
    registry.register()
    before = registry.whole_state

    def check(number: str) -> None:
        raise CalmError(f"version {number}: its files are gone")

    with pytest.raises(CalmError, match=r"^version 1: its files are gone"):
        registry.aliases().roll_back("it repeats itself", check)
    assert registry.whole_state == before


def test_there_is_no_way_back_to_a_deleted_version_or_from_none(store: Callable[..., Registry]) -> None:
    registry = store((2, 1))
    with pytest.raises(CalmError, match=r"no version of model-[0-9]+ is champion"):
        registry.aliases().roll_back("why not")
    registry.register()
    registry.register()
    registry.client.delete_model_version(registry.name, "1")
    with pytest.raises(
        CalmError, match=r"version 1 of model-[0-9]+, which was champion before version 2, has been deleted"
    ):
        registry.aliases().roll_back("why not")
    assert registry.champion == "2"


def test_reasons_are_bounded(store: Callable[..., Registry]) -> None:
    registry = store()
    registry.register()
    for turn in range(40):
        registry.version()
        registry.aliases().promote(str(2 + turn % 2), "w" * 3000)
    tags = registry.tags("2")
    assert len(tags[PROMOTION_TAG]) <= 1000 and len(tags[DECISION_TAG]) < 2**15
