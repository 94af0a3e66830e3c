"""Tables of parts: lazy, ordered, helpful when a name is wrong."""

import sys

import pytest

from blip3o.core.errors import UsageError, unknown_name
from blip3o.core.registry import Registry

TABLE = Registry(
    "decoder", {"zip": "zipfile:ZipFile", "near": ".log:MetricsLogger"}, package="blip3o.core"
)


def test_entries_are_found_by_full_and_by_relative_module() -> None:
    from zipfile import ZipFile

    from blip3o.core.log import MetricsLogger

    assert TABLE.get("zip") is ZipFile
    assert TABLE.get("near") is MetricsLogger
    assert TABLE.names() == ["zip", "near"]


def test_a_module_is_imported_only_when_its_entry_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    table = Registry("poem", {"zen": "this:s", "gone": "no_such_module:x"}, package="blip3o")
    assert "this" not in sys.modules
    assert table.get("zen").startswith("Gur Mra")


def test_a_wrong_name_gives_the_nearest_ones_or_all() -> None:
    with pytest.raises(UsageError, match=r"^unknown decoder 'nar'; did you mean near\?$"):
        TABLE.get("nar")
    with pytest.raises(UsageError, match=r"^unknown decoder '%%%'; known: near, zip$"):
        TABLE.get("%%%")


def test_several_near_names_are_all_listed() -> None:
    error = unknown_name("recipe", "pocket.al", ["pocket.all", "pocket.tune", "other"])
    assert "did you mean pocket.all or pocket.tune" in str(error)


def test_the_table_cannot_be_changed_from_outside() -> None:
    source = {"a": "zipfile:ZipFile"}
    table = Registry("x", source, package="blip3o")
    source["b"] = "zipfile:ZipFile"
    assert table.names() == ["a"]
