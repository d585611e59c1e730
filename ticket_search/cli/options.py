"""Options and arguments that several commands share."""

import json
import math
from typing import TYPE_CHECKING, Any

import click

from ticket_search.errors import quoted
from ticket_search.storage.folder import open_folder

if TYPE_CHECKING:
    from ticket_search.config.search import SearchSpec


class Location(click.Path):
    """The type of a directory argument: a local path or, unless `local` is true, a URI of object storage."""

    def __init__(self, *, local: bool = False) -> None:
        super().__init__(file_okay=False)
        self._local = local

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the argument to a local path or a normalized URI."""
        if not str(value).strip() or "\0" in str(value):
            self.fail(f"{quoted(str(value).strip())} is not a directory", param, ctx)
        if "://" not in str(value):
            return super().convert(value, param, ctx)
        if self._local:
            self.fail(f"{quoted(str(value))} is not a local directory", param, ctx)
        return str(open_folder(value))


class Count(click.IntRange):
    """The type of an integer in a range. Unlike `click.IntRange`, it shortens very long numbers in error messages."""

    def __init__(self, min: int = 1, max: int = 10_000) -> None:  # noqa: A002 (the names that click uses)
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the argument to an integer in the range."""
        if len(str(value)) > _MOST_DIGITS:
            self.fail(f"{quoted(value)} is not in the range {self.min}<=x<={self.max}", param, ctx)
        return super().convert(value, param, ctx)


class Finite(click.FloatRange):
    """The type of a number in a range. Unlike `click.FloatRange`, it rejects nan and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the argument to a number in the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not in the range {self.min}<=x<={self.max}", param, ctx)
        return number


_MOST_DIGITS = 60
#: The upper limit of `search.trials`.
MOST_TRIALS = 2**31 - 1
DIRECTORY = Location()
ADDRESS = click.option("--address", help="Ray cluster to run on, e.g. auto.  [default: RAY_ADDRESS, else this machine]")
STORE = click.option(
    "--store", type=DIRECTORY, help="Level store shared with other searches.  [default: in the run directory]"
)
MARGIN = click.option(
    "--margin",
    type=Finite(0, 1),
    default=0.005,
    show_default=True,
    help="How far a ticket may fall short of its dense network on the test metric and still match.",
)
DATA_DIR = click.option(
    "--data-dir",
    type=Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Folder of the data sets.  [default: data]",
)
DATA_DIR_OF_SEARCH = click.option(
    "--data-dir",
    type=Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Folder of the data sets.  [default: the search's own]",
)
ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Import and run the code (package.module:function) that the search or file refers to.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["inline", "processes", "ray"]),
    default="ray",
    show_default=True,
    help="Where trajectories run: in this process, in processes on this machine, or on Ray.",
)


def find_user_modules() -> None:
    """Call `config.imports.find_user_modules`; import it only now, because the import is slow."""
    from ticket_search.config.imports import find_user_modules as find

    find()


def in_places(spec: "SearchSpec", data_dir: str | None, store: str | None) -> "SearchSpec":
    """Apply ``--data-dir`` and ``--store`` to a search, and make the store's path absolute for the workers."""
    places = {"data_dir": data_dir, "store": store}
    spec = spec.model_copy(update={name: str(open_folder(place)) for name, place in places.items() if place})
    return spec.model_copy(update={"store": str(open_folder(spec.store))}) if spec.store else spec


def print_json(value: object) -> None:
    """Print a JSON-serializable value as JSON."""
    click.echo(json.dumps(value, indent=2))
