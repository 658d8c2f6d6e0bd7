"""The registry itself: names, families, redefinition, messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from gendistill.cli import USAGE, main
from gendistill.config import DataConfig
from gendistill.errors import ConfigError
from gendistill.registry import DISTILLERS, NETWORKS, REFINERS, SOURCES, DataSource, Registry, import_plugins


def made(name: str = "one") -> Registry:
    found: Registry = Registry("thing", "gendistill.no_such_group", {"ours": "math:pi", "kind:": len})
    found.add(name, made, made)
    return found


def test_ours_come_first_and_are_imported_when_they_are_used() -> None:
    found = made()
    assert found.names() == ("ours", "kind:NAME", "one")
    assert found["ours"] == pytest.approx(3.14159, abs=1e-4)
    assert found["kind:anything"] is len
    assert found["one"] is made
    assert "one" in found
    assert "two" not in found
    assert [found.is_added(name) for name in ("ours", "kind:x", "one", "two")] == [False, False, True, False]


def test_a_name_is_given_once_but_may_be_defined_anew() -> None:
    found = made()
    found.add("one", made, made)
    for name, function in (("ours", made), ("one", test_ours_come_first_and_are_imported_when_they_are_used)):
        with pytest.raises(ConfigError, match="registered already"):
            found.add(name, function, function)


@pytest.mark.parametrize("registry", [DISTILLERS, NETWORKS, REFINERS, SOURCES], ids=lambda r: r.kind)
def test_an_unknown_name_lists_all_and_guesses(registry: Registry) -> None:
    name = registry.names()[0]
    with pytest.raises(ConfigError) as refused:
        registry[name + "x"]
    message = str(refused.value)
    assert message.startswith(f"{registry.kind} is {name + 'x'!r}; expected one of {', '.join(registry.names())}.")
    assert f"Did you mean {name!r}?" in message
    assert "--plugin MODULE" in message


def test_every_name_of_ours_is_there() -> None:
    assert all(callable(NETWORKS[name]) for name in NETWORKS.names())
    assert all(DISTILLERS[name].make for name in DISTILLERS.names())


def test_a_plugin_that_is_missing_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", "no_such_module", "verify", "here"]) == USAGE
    assert "The plugin 'no_such_module' cannot be imported" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be imported"):
        import_plugins(["no_such_module"])


def test_the_name_of_a_source_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the working folder, unless it is the folders' own source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SOURCES._added, "stars", DataSource(function=made))
    for name in ("digits", "stars", "hub", "photos"):
        (tmp_path / name).mkdir()
    found = {name: DataConfig(name=name).folder for name in ("digits", "stars", "hub", "photos", "missing")}
    assert found == {"digits": None, "stars": None, "hub": Path("hub"), "photos": Path("photos"), "missing": None}
