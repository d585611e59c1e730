"""Installs search_spaces/ inside the package, as ticket_search/search_spaces/, which pyproject.toml cannot express.

A symbolic link in the repository would work too, but not on Windows or in archives that do not preserve links.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ticket_search*"]), "ticket_search.search_spaces"],
    package_dir={"ticket_search.search_spaces": "search_spaces"},
)
