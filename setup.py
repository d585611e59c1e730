"""What pyproject.toml cannot say: search_spaces/ is installed inside the package, as ticket_search/search_spaces/.

A symbolic link would do it too, but breaks on Windows and in archives that do not keep links.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ticket_search*"]), "ticket_search.search_spaces"],
    package_dir={"ticket_search.search_spaces": "search_spaces"},
)
