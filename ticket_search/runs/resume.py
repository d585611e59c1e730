"""Applies new settings to a search that is being resumed, and checks that a resumed search may change them."""

from collections.abc import Iterable

from ticket_search.config.search import CHANGEABLE_SETTINGS, PLACES, SearchSpec
from ticket_search.errors import SpecError
from ticket_search.runs.directory import read_spec
from ticket_search.storage.folder import Folder


def resumed(run_dir: Folder, trials: int | None = None, settings: tuple[str, ...] = ()) -> SearchSpec:
    """Read the search in a run directory, and apply a new number of trials and new settings.

    Args:
        run_dir: the run directory.
        trials: the number of trajectories, at least as many as before; None keeps the number.
        settings: ``KEY=VALUE`` strings, for settings that may change.

    Raises:
        SpecError: a setting is not valid, would make this a different search, or reduces the number of trials.
    """
    before = read_spec(run_dir)
    if trials is not None:
        if before.search.trials is None:
            raise SpecError(f"--trials {trials}: the search already runs its whole grid; leave --trials out")
        settings = (*settings, f"search.trials={trials}")
    changeable = (*(f"search.{name}" for name in CHANGEABLE_SETTINGS), *PLACES)
    another = SpecError(
        f"--set {' --set '.join(settings)}: that would be another search; only {', '.join(changeable)} may change"
    )
    try:
        spec = read_spec(run_dir, settings)
    except SpecError as error:
        if all(setting.startswith(changeable) for setting in settings) or _names_one(settings, str(error)):
            raise
        # The settings are incompatible with other fields of this search, so they must be meant for another search.
        raise another from None
    if spec.identity() != before.identity():
        raise another
    old, new = before.search.trials, spec.search.trials
    if old is not None and new is not None and new < old:
        raise SpecError(f"--trials {new} is less than the search's {old} trials; give at least {old}")
    return spec


def _names_one(settings: Iterable[str], message: str) -> bool:
    return any(setting.partition("=")[0] in message for setting in settings)
