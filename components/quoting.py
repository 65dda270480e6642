"""Text that travels through Kubeflow unchanged.

Kubeflow replaces what it takes for a placeholder anywhere in a task's command, values that a user wrote included:
`{{...}}` (its own, and Argo's in a cluster), the path of its workspace, and the names of its channels; and Kubernetes
`$(NAME)` by a variable, and `$$`. In quoted text none of them is left; other text reads as before.
"""

import re
from collections.abc import Callable
from typing import Any

_REPLACED = re.compile(r"\{(?=\{)|/(?=kfp-workspace)|p(?=ipelinechannel--)|\$(?=[$(])")
_QUOTED = re.compile("%(25|7B|2F|70|24)")
_ESCAPED = re.compile(f"%(?=25|7B|2F|70|24)|{_REPLACED.pattern}")


def is_safe(text: str) -> bool:
    """Whether Kubeflow hands on a text as it is."""
    return not _REPLACED.search(text)


def quoted(values: Any) -> Any:
    """JSON values with all their texts quoted: what Kubeflow would replace, and what reads as quoted, as %XX."""
    return _mapped(values, lambda text: _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", text))


def unquoted(values: Any) -> Any:
    """The values that were quoted; any other %XX is text, as in parameters that nobody has quoted."""
    return _mapped(values, lambda text: _QUOTED.sub(lambda match: chr(int(match[1], 16)), text))


def _mapped(values: Any, function: Callable[[str], str]) -> Any:
    match values:
        case str():
            return function(values)
        case dict():
            return {key: _mapped(value, function) for key, value in values.items()}
        case list() | tuple():
            return [_mapped(value, function) for value in values]
        case _:
            return values
