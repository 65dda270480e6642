"""When aliases move, in a real MLflow store; the versions have no files, and a table says which one beats which."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from calm_core.config import RegistryConfig
from calm_core.errors import CalmError
from calm_core.registry.aliases import DECISION_TAG, EVALUATION_TAG, PROMOTION_TAG, Aliases, Decision
from calm_core.registry.gate import Contender, judge
from calm_core.store.facts import Decided, Difference, Score


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
                brierlm=Score(value=2.0 if better else 0.5, low=-1.0, high=3.0),
                brier={n: Score(value=0.01) for n in "1234"},
                p_value=0.001 if better else 0.4,
                documents=30,
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


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


_NUMBERS = itertools.count()


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """Makes registries, each with pairs of versions of which the first beats the second."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
    yield lambda *beats: Registry(f"model-{next(_NUMBERS)}", beats)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


def test_the_first_version_becomes_champion(store: Callable[..., Registry]) -> None:
    registry = store()
    decided = registry.register()
    assert (decided.promoted, decided.reason, decided.champion) == (True, "champion, since no version was", "")


def test_the_champion_gives_way_to_a_significantly_better_version_alone(store: Callable[..., Registry]) -> None:
    registry = store((3, 1))
    registry.register()
    kept = registry.register()
    assert kept.reason == (
        "champion stays with version 1, since this one is not significantly better: "
        "BrierLM +0.50 [-1.00, 3.00] on 30 documents, p = 0.4, for 0.05"
    )
    better = registry.register()
    assert better.reason == "champion instead of version 1: BrierLM +2.00 [-1.00, 3.00] on 30 documents, p = 0.001"
    assert better.champion == "1" and better.comparison and better.comparison.p_value == 0.001
    assert registry.alias("challenger") == "3"


def test_a_decision_is_made_once(store: Callable[..., Registry]) -> None:
    """As an old command does whose stages all come from the cache: neither a champion of old nor what lost comes back."""
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
    assert first and again and again.earlier == [first.decided.reason]
    assert not registry.decide("1", promote="always").promoted and registry.champion == "2"


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
    assert registry.register().reason == "champion, since no version was"


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


@pytest.fixture
def before_call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Lets something be called before each call of MLflow's store, with its name."""
    hook: list[Callable[[str], None]] = []

    def wrapped(name: str) -> None:
        method = getattr(SqlAlchemyStore, name)

        def called(self: SqlAlchemyStore, *arguments: Any, **named: Any) -> Any:
            for each in hook:
                each(name)
            return method(self, *arguments, **named)

        monkeypatch.setattr(SqlAlchemyStore, name, called)

    for name in CALLS:
        wrapped(name)

    def use(new: Callable[[str], None]) -> None:
        hook[:] = [new]

    return use


CALLS = ("search_model_versions", "get_registered_model", "set_model_version_tag", "set_registered_model_alias")
ORDERS: dict[str, tuple[set[tuple[int, int]], str]] = {
    "neither is better than the champion": (set(), "1"),
    "only the first is": ({(2, 1)}, "2"),
    "only the second is": ({(3, 1)}, "3"),
    "both are, and are alike": ({(2, 1), (3, 1)}, "2"),
    "both are, and the second is better": ({(2, 1), (3, 1), (3, 2)}, "3"),
    "both are, and the first is better": ({(2, 1), (3, 1), (2, 3)}, "2"),
    "in a circle": ({(2, 1), (3, 2), (1, 3)}, "3"),
}
"""Which of version 1, the champion, and versions 2 and 3 beats which, and who is champion in the end."""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("slow", ["2", "3"])
def test_two_registered_at_once_end_alike_wherever_one_overtakes_the_other(
    order: str, slow: str, store: Callable[..., Registry], before_call: Callable[[Callable[[str], None]], None]
) -> None:
    """One is decided about as a whole before some call of the other one, for every call."""
    beats, champion = ORDERS[order]
    fast = "3" if slow == "2" else "2"
    expected = None
    for place in itertools.count():
        registry = store(*beats)
        registry.register()
        for _ in range(2):
            registry.version()
        calls, has_overtaken = itertools.count(), []

        def overtake(name: str) -> None:
            if next(calls) == place:
                has_overtaken.append(name)
                registry.decide(fast)

        before_call(overtake)
        registry.decide(slow)
        before_call(lambda name: None)
        if not has_overtaken:
            registry.decide(fast)
        registry.decide("2")
        expected = expected or registry.whole_state
        assert registry.whole_state == expected, f"overtaken before call {place}: {has_overtaken}"
        assert registry.champion == champion and registry.alias("challenger") == "3"
        states = {number: registry.state(number) for number in "123"}
        assert set(states.values()) <= {"promoted", "kept"}
        if not has_overtaken:
            assert place > 8  # every call has had its turn
            return


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_a_crash_leaves_the_next_run_brings_to_the_same_end(
    order: str, store: Callable[..., Registry], before_call: Callable[[Callable[[str], None]], None]
) -> None:
    """Killed before each call in turn; and then either the same registration runs again, or a later one alone."""
    beats, champion = ORDERS[order]
    expected = None
    for place in itertools.count():
        registry = store(*beats)
        registry.register()
        registry.version()
        calls, is_killed = itertools.count(), []

        def kill(name: str) -> None:
            if next(calls) == place:
                is_killed.append(name)
                raise Killed

        before_call(kill)
        try:
            registry.decide("2")
        except Killed:
            before_call(lambda name: None)
            if place % 2:
                registry.decide("2")
        before_call(lambda name: None)
        registry.version()
        registry.decide("3")
        expected = expected or registry.whole_state
        assert registry.whole_state == expected, f"killed before call {place}: {is_killed}"
        assert registry.champion == champion
        if not is_killed:
            assert place > 8
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
    with pytest.raises(CalmError, match="^version 2 of model-[0-9]+ is champion already"):
        registry.aliases().promote("2", "again")
    assert registry.aliases().roll_back("it was not") == ("2", "3")
    assert registry.tags("2")[PROMOTION_TAG] == "rolled back to version 3: it was not"
    assert registry.aliases().roll_back("nor this") == ("3", "1") and registry.champion == "1"
    decision = Decision.read(registry.tags("2"))
    assert decision and decision.state == "rolled back" and decision.earlier[-1] == promoted.reason
    assert len(decision.earlier) == 2
    for number in "23":  # old commands again
        assert not registry.decide(number).promoted
    with pytest.raises(CalmError, match="no tag of model-[0-9]+ says which version was champion before version 1"):
        registry.aliases().roll_back("further")
    assert registry.champion == "1"


def test_there_is_no_way_back_to_a_deleted_version_or_from_none(store: Callable[..., Registry]) -> None:
    registry = store((2, 1))
    with pytest.raises(CalmError, match="no version of model-[0-9]+ is champion"):
        registry.aliases().roll_back("why not")
    registry.register()
    registry.register()
    registry.client.delete_model_version(registry.name, "1")
    with pytest.raises(
        CalmError, match="version 1 of model-[0-9]+, which was champion before version 2, has been deleted"
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
