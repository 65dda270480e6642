"""`calm retrain`: the pipeline again, if there is text that no version was trained on."""

import typer

from calm_cli.options import (
    DEFAULT_PROFILE,
    ProfileOption,
    SetOption,
    SourceOption,
    TextFieldOption,
    configuration,
    with_text,
)
from calm_cli.run import run_pipeline
from calm_cli.runs import asked_for
from calm_cli.screen import Screen, told
from calm_core.errors import EXIT_NOTHING_NEW
from pipelines.arguments import arguments_of, retrained
from pipelines.local.home import Home
from pipelines.local.preflight import check_environment, check_run


def retrain(
    profile: ProfileOption = DEFAULT_PROFILE,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    set_: SetOption = None,
) -> None:
    """Train again if there is new text, and let the better model be champion. Fit for cron.

    Text is new that the newest registered version was not trained on. It is added to that version's dataset; without
    one, or where that is gone, all text is taken. What was stopped or killed is finished by the next call.

    Exit codes: 0 when a version was trained and judged, champion or not, which the last line says; 3 when there is no
    new text, within seconds; 1 when it failed, or another run is at work in this home; 2 for wrong settings.

    Examples:

      calm retrain --source 'texts/*.jsonl'

      calm retrain --source 'texts/*.jsonl' --set retraining.start=champion
    """
    config = configuration(profile, set_, {"data.sources": source or None, "data.text_field": text_field})
    asked = asked_for("retrain", profile, source or (), text_field, set_ or (), config)
    check_environment()
    home, screen = Home.find(), Screen(soft_wrap=True)
    with home.lock() as lock:
        config = with_text(config, home)
        from calm_core.registry.retraining import look_for_new_data
        from pipelines.local.tracking import use_tracking

        use_tracking(home, config.experiment)
        look = look_for_new_data(config.data, config.registry, config.retraining)
        screen.print(look.told)
        if not look.is_new:
            raise typer.Exit(EXIT_NOTHING_NEW)
        config = retrained(config, look.extends, look.initial_weights)
        arguments = arguments_of(config, str(home.plans), str(home.checkpoints))
        with told(Screen(stderr=True)) as tell:
            check_run(config, home, lambda what: tell(f"checking {what}"))
        finished, _ = run_pipeline(config, arguments, home, lock, screen, asked)
    facts = finished.registration.facts
    screen.print(f"report: {finished.report}\n{facts.model_name} version {facts.version}: {facts.reason}")
