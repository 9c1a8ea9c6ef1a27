"""docs/architecture.md names constants that exist."""

import importlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_every_bound_that_the_page_names_is_a_constant() -> None:
    named = list(constants(PAGE.read_text()))
    missing = [f"{module}.{name}" for module, name in named if not hasattr(importlib.import_module(module), name)]
    assert len(named) > 100
    assert missing == []


def constants(page: str) -> list[tuple[str, str]]:
    """The constants in the last column of the table of bounds; one without a module is in the module before it."""
    found = []
    for line in page.splitlines():
        module = ""
        for reference in re.findall(r"`([A-Za-z_.]+)`", line.rstrip("|").rpartition("|")[2]) if line.startswith("|") else []:
            before, _, name = reference.rpartition(".")
            module = before or module
            if name.isupper() and module:
                found.append((f"agentfs.{module}", name))
    return found
