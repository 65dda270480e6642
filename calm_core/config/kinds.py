"""Choosing between kinds of a thing: each is one class with settings of its own, and is named once."""

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from calm_core.config.base import Section, as_written

KindT = TypeVar("KindT", bound="Kind")


class Kind(Section):
    """Settings of one kind; a subclass sets the default of `kind` to its name."""

    kind: str


class Kinds(Generic[KindT]):
    """The kinds there are.

    A new one is a file with its class, and a line here. Its settings, a subclass of the base whose `kind` is the name,
    may stand in that file. Those of the kinds in our profiles stand in this package, so that reading settings does not
    import torch, which takes seconds.

    Args:
        setting: The setting that chooses, e.g. "calm.model.head".
        base: What the settings of all kinds share.
        classes: Where the class of each kind is, "module:Class"; the first one is the default.
    """

    def __init__(self, setting: str, base: type[KindT], classes: Mapping[str, str]) -> None:
        self.setting = setting
        self.base = base
        self.classes = dict(classes)

    def settings_of(self, kind: str) -> type[KindT]:
        """The settings of a kind.

        Raises:
            ValueError: There is no such kind.
        """
        if kind not in self.classes:
            raise ValueError(f"there is no {as_written(kind)}; there are {', '.join(self.classes)}")
        found = self._defined(kind)
        if found is None:
            self.class_of(kind)  # importing it defines them
            found = self._defined(kind)
        if found is None:
            raise ValueError(f"{self.classes[kind]} comes without settings: no {self.base.__name__} of kind {kind!r}")
        return found

    def _defined(self, kind: str) -> type[KindT] | None:
        subclasses = self.base.__subclasses__()
        while subclasses:
            candidate = subclasses.pop()
            if candidate.model_fields["kind"].default == kind:
                return candidate
            subclasses += candidate.__subclasses__()
        return None

    def class_of(self, kind: str) -> Any:
        """The class of a kind, imported here."""
        module, _, name = self.classes[kind].partition(":")
        return getattr(importlib.import_module(module), name)

    def parse(self, value: Any) -> KindT:
        """Validate settings; a name alone stands for that kind with its defaults.

        Raises:
            ValueError: There is no such kind, or one of its settings is refused.
        """
        if isinstance(value, self.base):
            return value
        settings = {"kind": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping):
            raise ValueError(f"expected a kind with its settings, e.g. {{kind: {next(iter(self.classes))}}}")
        kind = settings.get("kind", next(iter(self.classes)))
        if not isinstance(kind, str):
            raise ValueError(f"its kind is a name (got {as_written(kind)}); there are {', '.join(self.classes)}")
        return self.settings_of(kind).model_validate({**settings, "kind": kind})

    def switched(self, settings: Any, kind: str) -> dict[str, Any]:
        """The settings of another kind: of the ones before, those that both kinds share, with one default, stay."""
        before = settings if isinstance(settings, Mapping) else {}
        was = before.get("kind", next(iter(self.classes)))
        if was == kind:
            return {**before, "kind": kind}
        try:
            old, new = (self.settings_of(str(name)) for name in (was, kind))
        except ValueError:  # there is no such kind, which is told where it is read
            return {"kind": kind}
        # Of the base, or of what the two extend alike.
        common = next(one for one in old.__mro__ if issubclass(new, one) and issubclass(one, self.base))
        shared = {
            name for name in common.model_fields if old.model_fields[name].default == new.model_fields[name].default
        }
        return {name: value for name, value in before.items() if name in shared} | {"kind": kind}
