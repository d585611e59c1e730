"""What may change when a search is resumed."""

from ticket_search.config.search import CHANGEABLE_SETTINGS, PLACES, SearchSpec
from ticket_search.errors import SpecError
from ticket_search.runs.directory import read_spec
from ticket_search.storage.folder import Folder


def resumed(run_dir: Folder, trials: int | None = None, settings: tuple[str, ...] = ()) -> SearchSpec:
    """The search of a run directory, with more trials or changed settings.

    Args:
        run_dir: the run directory.
        trials: the number of trajectories; at least as many as before.
        settings: ``KEY=VALUE``, for settings that may change.

    Raises:
        SpecError: a setting is not valid, makes it another search, or reduces the number of trials.
    """
    before = read_spec(run_dir)
    if trials is not None:
        if before.search.trials is None:
            raise SpecError(f"--trials {trials}: the search already runs its whole grid")
        settings = (*settings, f"search.trials={trials}")
    changeable = (*(f"search.{name}" for name in CHANGEABLE_SETTINGS), *PLACES)
    spec = read_spec(run_dir, settings)
    if spec.identity() != before.identity():
        raise SpecError(
            f"--set {' --set '.join(settings)}: that would be another search; {', '.join(changeable)} may change"
        )
    old, new = before.search.trials, spec.search.trials
    if old is not None and new is not None and new < old:
        raise SpecError(f"--trials {new} is less than the search's {old}; give {old} or more")
    return spec
