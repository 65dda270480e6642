"""Points of training curves, and where they go."""

import json

from calm_core.telemetry.sinks import Curves, Point, Sinks


def point(step: int, **metrics: float) -> Point:
    return Point(step, 10, metrics, {"tokens_per_second": 5.0}, eta=1.0, headline="loss")


def test_every_sink_gets_every_point() -> None:
    first, second = Curves(), Curves()
    sinks = Sinks([first, second])
    sinks.log(point(1, loss=3.0))
    sinks.log(point(2, loss=2.0, validation_loss=2.5))
    assert first.records == second.records == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "validation_loss": 2.5},
    ]  # fmt: skip


def test_no_sinks_take_points_in_silence() -> None:
    Sinks().log(point(1, loss=3.0))


def test_curves_are_json_lines_without_what_differs_between_two_runs() -> None:
    curves = Curves()
    curves.log(point(1, loss=3.0))
    assert [json.loads(line) for line in curves.to_bytes().splitlines()] == [{"step": 1, "loss": 3.0}]


def test_the_latest_value_may_be_of_an_earlier_point() -> None:
    curves = Curves()
    curves.log(point(1, loss=3.0, validation_loss=4.0))
    curves.log(point(2, loss=2.0))
    assert (curves.latest("loss"), curves.latest("validation_loss"), curves.latest("unheard")) == (2.0, 4.0, None)
