"""Lazy tables of names: one literal line per component, imported only when it is requested."""

import importlib
from typing import Generic, TypeVar

from blip3o.core.errors import unknown_name

EntryT = TypeVar("EntryT")


class Registry(Generic[EntryT]):
    """A table from a short name to the class or function that implements it.

    The annotation of a table states the type of its entries: `Registry[type[Source]]`.

    Args:
        what: kind of the entries, for error messages ("backbone").
        table: name -> "module:attribute"; a leading dot is relative to `package`.
        package: the package that relative modules start from (pass `__name__`).
    """

    def __init__(self, what: str, table: dict[str, str], *, package: str) -> None:
        self.what = what
        self._table = dict(table)
        self._package = package

    def names(self) -> list[str]:
        """Returns every known name, in table order."""
        return list(self._table)

    def place(self, name: str) -> tuple[str, str]:
        """Returns the module and the attribute of a name, without importing anything.

        Raises:
            UsageError: if the name is unknown; the message lists the nearest names.
        """
        if name not in self._table:
            raise unknown_name(self.what, name, self._table)
        module, _, attribute = self._table[name].partition(":")
        return module, attribute

    def get(self, name: str) -> EntryT:
        """Returns the entry of a name after importing its module.

        Raises:
            UsageError: as `place`.
        """
        module, attribute = self.place(name)
        return getattr(importlib.import_module(module, self._package), attribute)
