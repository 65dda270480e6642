"""A tokenizer from elsewhere is tried out in a process of its own before it is used.

Its file may hold regular expressions that take exponential time or memory, or make the library panic. `complaint` runs
this module, which encodes awkward texts under limits; it imports little, so that the process starts quickly.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress

import tokenizers

CPU_SECONDS = 120  # a vocabulary of 256,000 tokens takes 3
MEMORY_BYTES = 4 * 2**30  # of addresses; a vocabulary of 256,000 tokens takes 300 MiB

AWKWARD_TEXTS = (
    "",
    " ",
    "\n\n \t\r\n  a",
    "It's WE'RE they'll I'd'nt ''s",
    "0 12 345 6789 1,234.5 x2y",
    "déjà vu Ünïcödé naïve e\u0301\u0327 ﬁ",
    "日本語のテキスト 中文 한국어 ไทย עברית العربية",
    "👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u3000\ufeff",
    "<|endoftext|><|pad|> <|begin_of_text|>",
    "\x00\x01\x7f\x85\u2028",
    "a" * 3000 + " " * 300 + "\n" * 300 + "ab" * 500,
    "def f(x):\n\treturn {'a': [1, 2], **x}  # !!! ---->>> ???",
)
_REPEATED = ("a", "A", "x", "ab", "0", " ", "\n", "\t", "-", ".", "=", "a ", "é", "日")


def complaint(tokenizer_json: bytes) -> str:
    """Why a tokenizer cannot be used, on one line; empty where it can encode and decode awkward texts."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, str(CPU_SECONDS), str(MEMORY_BYTES)]
    try:
        # The limit of CPU time ends it first, unless the machine is busy with other things.
        done = subprocess.run(
            command, input=tokenizer_json, env=environment, capture_output=True, timeout=10 * CPU_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"took more than {10 * CPU_SECONDS} s for a few short texts"
    if done.returncode < 0 or not done.stdout:  # a signal, or the library's own end where no memory is left
        return f"took more than {CPU_SECONDS} s or {MEMORY_BYTES >> 30} GiB for a few short texts"
    return str(json.loads(done.stdout))


def _try_out(data: bytes) -> str:
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        for text in (*AWKWARD_TEXTS, *(piece * 200 + "!" for piece in _REPEATED)):
            try:
                ids = backend.encode(text, add_special_tokens=False).ids
            except Exception:  # a vocabulary need not have every character
                continue
            for skip in (True, False):
                backend.decode(ids, skip_special_tokens=skip)
    except BaseException as error:  # a panic of the library is no Exception
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


if __name__ == "__main__":
    import resource  # not on every system that reads a registered model

    cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    with suppress(ValueError, OSError):  # not every system limits addresses
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    print(json.dumps(_try_out(sys.stdin.buffer.read())))
