"""What is shown of text from outside: nothing acts on a terminal, and nothing secret is told."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_core.shown import brief, holds_secret, redacted, shortened, visible

SECRET = "s3cr3t"
WITH_SECRET = [
    f"https://user:{SECRET}@host/x",
    f"https://{SECRET}@github.com/a/b",  # a token in place of a user
    f"s3://KEY:{SECRET}/+@bucket/x",  # keys of AWS hold slashes
    f"simplecache::https://user:a@{SECRET}@host/x",
    f"postgresql+psycopg2://mlflow:{SECRET}@db:5432/mlflow",
    f"https://user:12{SECRET}@host",
    f"https://host/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&versionId=3",
    f"s3://b/x?AWSAccessKeyId={SECRET}",
    f"az://container/x?sv=2024&sig={SECRET}%3D",
    f"https://host/x#access_token={SECRET}",
    f"HTTPS://host/x?Api-Key={SECRET}",
]
WITHOUT_SECRET = [
    "texts/a@b:c/*.jsonl",
    "abfs://container@account.dfs.core.windows.net/x",  # Azure names a place so
    "hf://datasets/a/b@revision/x.parquet",
    "http://localhost:5000/a@b",
    "http://[::1]:5000/a@b",
    "http://host:80",
    "sqlite:////home/a@b/c:d.db",
    "s3://bucket/a:b@c?versionId=3",
    "./notes?token=1",
]


@pytest.mark.parametrize("url", WITH_SECRET)
def test_secrets_of_urls_are_hidden_wherever_they_stand(url: str) -> None:
    assert holds_secret(url)
    for text in (url, f"cannot read {url}: it's gone", f"['{url}', 'a.txt']", f'{{"sources":["{url}"]}}'):
        assert SECRET not in redacted(text)
        assert SECRET not in brief(text, 500)


@pytest.mark.parametrize("url", WITHOUT_SECRET)
def test_what_is_no_secret_stays(url: str) -> None:
    assert not holds_secret(url)
    assert redacted(url) == url


def test_white_space_does_not_hide_a_secret() -> None:
    assert holds_secret(f"https://user:my {SECRET}@host")


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_nothing_that_is_shown_acts_on_a_terminal(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not {char for char in shown if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    assert not {char for char in shown if unicodedata.bidirectional(char) in ("RLO", "LRO", "RLI", "LRI", "RLE", "LRE")}
    assert visible(shown) == shown


def test_control_characters_are_seen_and_the_rest_stays() -> None:
    assert visible("a\x1b[2J\x9b\u202eb\ud800") == "a\\x1b[2J\\x9b\\u202eb\\ud800"
    assert visible("a\tb\r\n", keep="\t\n") == "a\tb\\r\n"
    assert (
        visible("Ünïcödé, 日本語, שלום, 👩\u200d👩\u200d👧, नमस्ते") == "Ünïcödé, 日本語, שלום, 👩\u200d👩\u200d👧, नमस्ते"
    )


def test_a_value_is_repeated_briefly() -> None:
    assert brief("a\n\x1b") == r"'a\n\x1b'"
    assert brief(12) == "12"
    long = brief("a" * 100_000 + "b")
    assert len(long) == 80
    assert long.startswith("'aa") and "…" in long and long.endswith("ab'")


@pytest.mark.parametrize(
    "part", ["a", "://", "?", "?token", "?a=", "token", "@", ":", "user:", "https://u:", "\x1b", "&sig=x"]
)
def test_long_texts_cost_no_more_than_their_length(part: str) -> None:
    """Each of these takes minutes where a pattern looks at the rest of the text from every place of it."""
    for text in (part * 50_000, "https://" + part * 50_000):
        assert len(shortened(text)) <= 80
