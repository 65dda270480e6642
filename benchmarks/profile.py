"""Where the time of a training step goes, ours and the plain one's: `python -m benchmarks.profile`.

Milliseconds in each kind of torch's operations, by its profiler, under which a step takes some percent longer.
"""

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Numbers
from benchmarks.training import (
    STEPS,
    Step,
    in_precision,
    plainly,
    precisions,
    tiny_autoencoder_step,
    tiny_step,
)

_REPEATS = 3
_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
KINDS = {
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": (_ATTENTION, f"{_ATTENTION}_backward"),
    "AdamW": ("aten::_fused_adamw_",),
    "copies, casts, gathering": ("aten::copy_", "aten::cat", "aten::index", "aten::fill_"),
    "random numbers": ("aten::normal_", "aten::uniform_"),
}
"""Names of operations; all others are one more kind."""
OTHERS = "element by element, norms, sums, calls"


def main() -> None:
    """Print a table for each size."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for size, (make, _, _) in STEPS.items():
        step = make()
        _print(
            f"step {size}",
            {
                f"{name}, {precision}": milliseconds(in_precision(precision, each))
                for precision in precisions()
                for name, each in (("plain", plainly(step)), ("ours", step))
            },
        )
    for what, step in (("the autoencoder", tiny_autoencoder_step()), ("CALM", tiny_step())):
        _print(f"step of {what} of tiny", {each: milliseconds(in_precision(each, step)) for each in precisions()})


def _print(title: str, columns: dict[str, Numbers]) -> None:
    print(f"\n| {title}, ms | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for kind in (*KINDS, OTHERS):
        print(f"| {kind} | {' | '.join(f'{found[kind]:,.1f}' for found in columns.values())} |")
    print(f"| all | {' | '.join(f'{sum(found.values()):,.1f}' for found in columns.values())} |", flush=True)


def milliseconds(step: Step) -> Numbers:
    """Of one step, by kind."""
    step()  # the first call allocates
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_REPEATS):
            step()
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    found = dict.fromkeys((*KINDS, OTHERS), 0.0)
    for event in profiler.key_averages():
        found[kinds.get(event.key, OTHERS)] += event.self_cpu_time_total / 1000 / _REPEATS
    return found


if __name__ == "__main__":
    main()
