"""Settings by the thousand, as overrides, profiles and options: what is accepted means what YAML 1.2 and JSON say."""

import json
import math
import random
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from calm_cli.settings import settings_lines
from calm_core.config import Config, Section, resolve_config
from calm_core.errors import CalmError
from pipelines import profiles
from tests.reliability.campaign import Case, Lie

SECRET = "s3cr3t"

TEXTS: dict[str, Any] = {  # each with its meaning in YAML 1.2, that of its core schema
    "1": 1, "0": 0, "-1": -1, "+5": 5, "12": 12, "0777": 777, "0o17": 15, "0x1F": 31, "010": 10, "1_000": "1_000",
    "1e8": 1e8, "1E3": 1e3, "1e-3": 1e-3, "2.5": 2.5, ".5": 0.5, "5.": 5.0, "-0.0": 0.0, "512.0": 512.0,
    "1e400": math.inf,
    "1e300": 1e300, "1:30": "1:30", "1:30:00": "1:30:00", "190:20:30.15": "190:20:30.15", "0b11": "0b11",
    "1,000": "1,000",
    "no": "no", "yes": "yes", "on": "on", "off": "off", "y": "y", "n": "n", "No": "No", "NO": "NO", "true": True,
    "True": True, "FALSE": False, "tRue": "tRue", "null": None, "~": None, "": None, "Null": None, "nul": "nul",
    ".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf, ".NaN": math.nan, "nan": "nan", "inf": "inf",
    "Infinity": "Infinity",
    "2024-01-31": "2024-01-31", "2024-01-31 10:00:00": "2024-01-31 10:00:00", "'12'": "12", '"12"': "12",
    "'no'": "no",
    "=": "=", "<<": "<<", "a b": "a b", "a#b": "a#b", "a #b": "a", "'it''s'": "it's", '"a\\tb"': "a\tb",
    '"\\x41"': "A",
    '"\\ud83d\\ude00"': "😀", "😀": "😀", "日本": "日本", "é": "é", "a=b": "a=b", "[]": [], "[a]": ["a"],
    "[a, b]": ["a", "b"],
    "[1, 2.5]": [1, 2.5], "[0.9, 0.95]": [0.9, 0.95], "[true, 0.5]": [True, 0.5], "[no, 1:30]": ["no", "1:30"],
    "[[a]]": [["a"]],
    "{}": {}, "{a: 1}": {"a": 1}, "{kind: flow}": {"kind": "flow"}, "flow": "flow", "energy": "energy",
    "fp32": "fp32",
    "s3://bucket/*.jsonl": "s3://bucket/*.jsonl", "abfs://container@account.dfs/x": "abfs://container@account.dfs/x",
    "{{$.inputs}}": ..., "'{{$}}'": "{{$}}", "'{{$.inputs.parameters[''seed'']}}'": "{{$.inputs.parameters['seed']}}",
}  # fmt: skip
"""... is for what is no YAML."""

BROKEN = [
    "[", "{a: b: c}", "'a",
    '"a', "&x a", "*x", "!!float x", "!!python/object/apply:os.system [ls]", "!a b", "%a", "@a", "`a",
    "[" * 3000, "{a: " * 3000, "- " * 3000, "? " * 3000, "9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000,
    "1e" + "9" * 5000,
    "0." + "1" * 5000, '"\\ud83d"', '"\\U99999999"', '"\\U00110000"', "a\x00b", "a\x1b[2Jb", "a\x85b", "a\u2028b",
    "\ud800",
    "a\n---\nb", "%YAML 1." + "9" * 5000 + "\n--- a", "{a: 1, a: 2}", "{1: 2}", "{[a]: b}", "&a [*a]", "a: b: c",
    "\t- a",
    "x" * 300_000, "[" + "a," * 150_000 + "]", "{b: &b [1], c: *b}",
    "{a0: &a0 [x, x], " + ", ".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)) + "}",
    "{<<: {a: 1}, <<: {b: 2}}",
]  # fmt: skip
"""What no setting may be read from."""

CONTROLS = [
    "\x00",
    "\x07",
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x7f",
    "\x9b31m",
    "\r",
    "\n",
    "\u2028",
    "\u202e",
    "\u2066",
    "\ud800",
    "\udfff",
]

SECRETS = [
    f"https://user:{SECRET}@host/x.jsonl", f"s3://KEY:{SECRET}/+=@bucket/x", f"https://{SECRET}@host/x",
    f"ftp://u:{SECRET}@h",
    f"simplecache::https://u:{SECRET}@h/x", f"https://h/x?X-Amz-Signature={SECRET}",
    f"https://h/x?token={SECRET}&a=1",
    f"https://h/x?a=1&sig={SECRET}", f"s3://b/x?AWSAccessKeyId={SECRET}", f"HTTPS://U:{SECRET}@H/*",
    f"https://u:1{SECRET}@h",
    f"postgresql://u:{SECRET}@h/db", f"https://h/#access_token={SECRET}", f"sftp://u:p@{SECRET}@h/x",
]  # fmt: skip

KEYS = [
    "", ".", "calm.", ".calm", "calm..steps", "calm.stepz", "steps", "calm.model.head.nose_size", "Calm.steps",
    "calm steps",
    "calm.steps.more", "seed.x", "a" * 10_000, ".".join("a" * 2000), "calm\x1b[2J", "calm.\u202esteps", "\ud800",
    "__class__",
    "model_config", "calm.kind", "data.sources.0", "calm.model", "{}", "calm.of_kind",
]  # fmt: skip

BASES = [
    "profile.yaml", "./profile.yaml", "a\x00.yaml", "x" * 5000, "../" * 50, "no such", "", 3, [], None, "tiny", "TINY",
    "loop.yaml", "folder.yaml", "\ud83d", "\x1b[2J", f"https://u:{SECRET}@h/x.yaml", "/dev/zero", "zero.yaml",
]  # fmt: skip

NUMBERS = [
    10**9 + 1,
    10**12,
    10**18,
    2**31,
    2**63,
    2**64,
    10**30,
    -1,
    -(10**18),
    0,
    1e300,
    -1e300,
    1e-300,
    math.inf,
    math.nan,
    -0.0,
]


def settings(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting that is no section with its type; of kinds, those of the default."""
    for name, field in section.model_fields.items():
        default = field.default
        if isinstance(default, Section):
            yield from settings(type(default), f"{prefix}{name}.")
        elif name != "kind":
            yield prefix + name, field.annotation


def value_of(config: Config, name: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def means(got: Any, said: Any, annotation: Any) -> bool:
    """Whether an accepted value is what the text says, for a setting of this type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return means(got, said, inner[0])
    if origin in (types.UnionType, typing.Union):
        return any(means(got, said, kind) for kind in inner)
    if annotation is type(None):
        return got is None and said is None
    if origin is tuple:
        kinds = inner[:1] * len(got) if inner[-1] is ... else inner
        is_list = isinstance(said, list) and len(said) == len(got)
        return is_list and all(means(*each) for each in zip(got, said, kinds, strict=True))
    if annotation is bool:
        words = {
            "yes": True,
            "on": True,
            "y": True,
            "true": True,
            "no": False,
            "off": False,
            "n": False,
            "false": False,
        }
        word = said.lower() if isinstance(said, str) else said  # in whatever case, nothing else can be meant
        return word in (*words, 0, 1) and got is words.get(word, bool(word))
    if annotation in (int, float):
        if isinstance(said, bool) or said is None or math.isnan(got) or math.isinf(got):
            return False
        return type(got) is annotation and got == (float(said) if isinstance(said, str) else said)
    if annotation is str or origin is Literal:
        return type(got) is type(said) and got == said
    return False


def cases(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Overrides, profiles, options and round trips in turn."""
    known = list(settings())
    makers: list[Callable[[], Case]] = [
        lambda: _override(rng, known),
        lambda: _override(rng, known),
        lambda: _broken(rng, known, folder),
        lambda: _secret(rng, known, folder),
        lambda: _control(rng, known),
        lambda: _number(rng, known),
        lambda: _key(rng, folder),
        lambda: _profile(rng, known, folder),
        lambda: _json(rng, known, folder),
        lambda: _round_trip(rng, known, folder),
        lambda: _base(rng, folder),
    ]
    while True:
        yield rng.choice(makers)()


def _override(rng: random.Random, known: list[tuple[str, Any]]) -> Case:
    name, annotation = rng.choice(known)
    text, said = rng.choice(list(TEXTS.items()))
    padded = f"{' ' * rng.randrange(3)}{text}{' ' * rng.randrange(3)}"

    def act() -> None:
        got = value_of(resolve_config({}, [f"{name}={padded}"]), name)
        if not means(got, said, annotation):
            raise Lie(f"{name}={padded} became {got!r}")

    return Case(f"override {name}={padded}", act)


def _broken(rng: random.Random, known: list[tuple[str, Any]], folder: Path) -> Case:
    name, text = rng.choice(known)[0], rng.choice(BROKEN)
    if rng.random() < 0.5:
        return Case(f"broken {name}={text[:30]!r}", lambda: resolve_config({}, [f"{name}={text}"]), must_refuse=True)
    *sections, last = name.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    profile = "\n".join([*lines, f"{'  ' * len(sections)}{last}: {text}", ""])
    return Case(f"broken profile {name}: {text[:30]!r}", lambda: _load(folder, profile), must_refuse=True)


def _secret(rng: random.Random, known: list[tuple[str, Any]], folder: Path) -> Case:
    name, url = rng.choice(known)[0], rng.choice(SECRETS)
    quoted = json.dumps(rng.choice([url, [url], ["a.txt", url], {"a": url}, f" {url}", f"see {url}"]))
    way = rng.choice(["override", "options", "profile", "key", "no key"])

    def act() -> None:
        if way == "override":
            resolve_config({}, [f"{name}={quoted}"])
        elif way == "options":
            resolve_config({}, [], {name: json.loads(quoted)})
        elif way == "profile":
            _load(folder, json.dumps(_nested({name: json.loads(quoted)})))
        elif way == "key":
            resolve_config({}, [f"{url}=1"])
        else:
            resolve_config({}, [url.partition("?")[0].partition("#")[0]])

    return Case(f"secret by {way} in {name}: {quoted}", lambda: _keeping_silent(act), must_refuse=True)


def _keeping_silent(act: Callable[[], object]) -> None:
    try:
        act()
    except CalmError as error:
        if SECRET in str(error):
            raise Lie(f"the message repeats the secret: {error}") from None
        raise


def _control(rng: random.Random, known: list[tuple[str, Any]]) -> Case:
    name, annotation = rng.choice([each for each in known if "str" in str(each[1])])
    text = rng.choice(["a", "s3://b/", "", "[red]"]) + rng.choice(CONTROLS) + rng.choice(["b", "", "/*.jsonl"])
    value: Any = [text] if "tuple" in str(annotation) else text
    is_prompt = name == "evaluation.prompts"  # a text, which may have lines

    def act() -> None:
        got = value_of(resolve_config({}, [], {name: value}), name)
        if not means(got, value, annotation):
            raise Lie(f"became {got!r}")

    return Case(f"control {name}={value!r}", act, must_refuse=not is_prompt or "\ud800" in text or "\udfff" in text)


def _number(rng: random.Random, known: list[tuple[str, Any]]) -> Case:
    name, annotation = rng.choice([each for each in known if each[1] in (int, float, int | None)])
    number = rng.choice(NUMBERS)
    must_refuse = (
        not math.isfinite(number) or number < 0 or abs(number) >= 2**64 or (annotation is float and number > 1e12)
    )
    return Case(f"number {name}={number}", lambda: _equal(name, number), must_refuse=must_refuse)


def _equal(name: str, number: float) -> None:
    got = value_of(resolve_config({}, [f"{name}={number}"]), name)
    if got != number or str(got) == "-0.0":
        raise Lie(f"{name}={number} became {got!r}")


def _key(rng: random.Random, folder: Path) -> Case:
    key, value = rng.choice(KEYS), rng.choice(["1", "a", "{}"])
    if rng.random() < 0.5:
        return Case(
            f"key {key[:40]!r}={value}",
            lambda: resolve_config({}, [f"{key}={value}"]),
            must_refuse=key != "calm.model" or value != "{}",
        )
    nested = json.dumps({key: value})
    return Case(f"profile with key {key[:40]!r}", lambda: _load(folder, nested), must_refuse=True)


def _values(rng: random.Random, known: list[tuple[str, Any]]) -> dict[str, Any]:
    """Some settings with values that are in order."""
    config = Config()
    chosen = {name: value_of(config, name) for name, _ in rng.sample(known, rng.randrange(1, 9))}
    odd = [
        "é😀",
        "a\u2028b",
        "no",
        "1:30",
        "0777",
        "# a",
        "a: b",
        "'",
        '"',
        "\\",
        "{{$}}",
        " a ",
        "~",
        "-",
        "[",
        "1e8",
        "null",
        "\ufeff",
    ]
    for name, value in chosen.items():
        if name == "evaluation.prompts":
            chosen[name] = rng.sample([*odd, "a\x1b[2Jb\n\x85\x00", "\u202e", "x" * 3000], 4)
        elif name == "data.sources":
            chosen[name] = rng.sample([text for text in odd if text != "a\u2028b"], 3)
        elif name in ("experiment", "data.text_field", "tokenizer.source"):
            chosen[name] = rng.choice([text for text in odd if text != "a\u2028b"])
        elif isinstance(value, bool):
            chosen[name] = rng.random() < 0.5
        elif isinstance(value, float) and "rate" in name:
            chosen[name] = rng.choice([1e-12, 1.5e-7, 3e-4, 0.1, 1.0, math.nextafter(0.1, 1)])
        elif isinstance(value, tuple):
            chosen[name] = list(value)
    return chosen


def _profile(rng: random.Random, known: list[tuple[str, Any]], folder: Path) -> Case:
    chosen = _values(rng, known)
    lines = json.dumps(_nested(chosen), indent=rng.choice([None, 1, 2]), ensure_ascii=rng.random() < 0.5).replace(
        "\u2028", "\\u2028"
    )
    lines = lines.replace("\x85", "\\u0085").replace("\ufeff", "\\ufeff")
    sections = [name for name in _nested(chosen) if isinstance(_nested(chosen)[name], dict)]
    change = rng.choice(
        ["none", "crlf", "bom", "comment", "utf-16", "section", "setting", "documents", "half", "tab", "latin"]
    )
    if change == "section" and not sections:
        change = "none"
    section = rng.choice(sections) if sections else ""
    text = {
        "crlf": lines.replace("\n", "\r\n"),
        "bom": "\ufeff" + lines,
        "comment": f"# a profile\n{lines}  # its end\n",
        "section": f"{section}: {{}}\nseed: 3\n{section}: {{}}\n",
        "setting": "calm:\n  steps: 700\n  seed: 1\n  steps: 800\n",
        "documents": f"{lines}\n---\n{lines}",
        "half": lines[: rng.randrange(1, len(lines) - 1)],
        "tab": f"calm:\n\tsteps: 3\n# {lines[:9]}",
    }.get(change, lines)
    encoding = {"utf-16": "utf-16", "latin": "utf-8"}.get(change, "utf-8")
    content = text.encode(encoding) + (b"\n# \xff\xfe" if change == "latin" else b"")
    must_refuse = change in ("section", "setting", "documents", "half", "tab", "utf-16", "latin")

    def act() -> None:
        config = _load(folder, content)
        for name, value in chosen.items():
            _same(config, name, value)

    return Case(f"profile, {change}: {text[:60]!r}", act, must_refuse=must_refuse)


def _same(config: Config, name: str, value: Any) -> None:
    got = value_of(config, name)
    if (list(got) if isinstance(got, tuple) else got) != value:
        raise Lie(f"{name}: {value!r} became {got!r}")


def _json(rng: random.Random, known: list[tuple[str, Any]], folder: Path) -> Case:
    """A profile in JSON with some characters changed: if it is JSON still, JSON says what it means."""
    characters = list(json.dumps(_nested(_values(rng, known))))
    for _ in range(rng.randrange(1, 4)):
        place, with_ = rng.randrange(len(characters)), rng.choice("{}[]:,\"\\ue0159-.+#&*!|>'%@`? \n\t\x1b\x7féa=~")
        characters[place : place + rng.randrange(2)] = [with_]
    text = "".join(characters)

    def act() -> None:
        config = _load(folder, text)
        try:
            said = json.loads(text, object_pairs_hook=_unique)
        except ValueError:
            return
        for name, value in _flat(said):
            found = dict(known).get(name)
            if found is not None and not means(value_of(config, name), value, found):
                raise Lie(f"{name}: {value!r} became {value_of(config, name)!r}")

    return Case(f"json {text[:80]!r}", act)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Lie(f"a name is there twice in {pairs}")
    return dict(pairs)


def _round_trip(rng: random.Random, known: list[tuple[str, Any]], folder: Path) -> Case:
    values = _values(rng, known)
    if rng.random() < 0.3:
        values["calm.model.head"] = {"kind": rng.choice(["flow", "diffusion", "energy", "residual", "mixture"])}

    def act() -> None:
        config = resolve_config({}, [], values)
        text = "\n".join(settings_lines(config))
        if any(not char.isprintable() and char != "\n" for char in text):
            raise Lie("what is printed acts on a terminal")
        if _load(folder, text) != config:
            raise Lie("what is printed reads back as something else")

    return Case(f"round trip {values}", act)


def _base(rng: random.Random, folder: Path) -> Case:
    base = rng.choice(BASES)
    (folder / "folder.yaml").mkdir(exist_ok=True)
    for name, target in (("loop.yaml", "loop.yaml"), ("zero.yaml", "/dev/zero")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    must_refuse = base not in ("tiny", None)
    text = json.dumps({"base": base})
    return Case(f"base {base!r:.40}", lambda: _keeping_silent(lambda: _load(folder, text)), must_refuse=must_refuse)


def _load(folder: Path, text: str | bytes) -> Config:
    path = folder / "profile.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return resolve_config(profiles.load(str(path)))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
