"""Options and arguments that several commands have."""

import json
from typing import TYPE_CHECKING, Any

import click

from ticket_search.storage.folder import open_folder

if TYPE_CHECKING:
    from ticket_search.config.search import SearchSpec


class Location(click.Path):
    """A directory as it was typed, local or a URI of object storage."""

    def __init__(self, *, local: bool = False) -> None:
        super().__init__(file_okay=False)
        self._local = local

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click: the location, or a message that says what is wrong with it."""
        if not str(value).strip():
            self.fail("'' is no directory", param, ctx)
        if "://" not in str(value):
            return super().convert(value, param, ctx)
        if self._local:
            self.fail(f"{str(value)!r} is not a local directory", param, ctx)
        return str(open_folder(value))


DIRECTORY = Location()
ADDRESS = click.option(
    "--address", help="A Ray cluster to run on, e.g. auto.  [default: RAY_ADDRESS, else this machine]"
)
STORE = click.option(
    "--store", type=DIRECTORY, help="A level store shared with other searches.  [default: in the run directory]"
)
MARGIN = click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="A ticket matches at up to so much below its dense network.",
)
DATA_DIR = click.option(
    "--data-dir",
    type=Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Where data sets lie.  [default: data]",
)
DATA_DIR_OF_SEARCH = click.option(
    "--data-dir",
    type=Location(local=True),
    envvar="TICKET_SEARCH_DATA_DIR",
    help="Where data sets lie.  [default: where the search had them]",
)
ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Import and run code that the search or the file names (package.module:function).",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["inline", "processes", "ray"]),
    default="ray",
    show_default=True,
    help="Where trajectories run: in this process, in processes of this machine, or on Ray.",
)


def find_user_modules() -> None:
    """See `config.imports.find_user_modules`, whose import is left to the commands that need it."""
    from ticket_search.config.imports import find_user_modules as find

    find()


def in_places(spec: "SearchSpec", data_dir: str | None, store: str | None) -> "SearchSpec":
    """The search with its data and its store where the command line says, the store so that every machine finds it."""
    places = {"data_dir": data_dir, "store": store}
    spec = spec.model_copy(update={name: str(open_folder(place)) for name, place in places.items() if place})
    return spec.model_copy(update={"store": str(open_folder(spec.store))}) if spec.store else spec


def print_json(value: object) -> None:
    """Print plain data."""
    click.echo(json.dumps(value, indent=2))
