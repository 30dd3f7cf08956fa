"""A config is parsed without doing the same twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint


def test_defaults_of_named_classes_are_added_once(
    config: Callable[..., str],
    main: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Those of what the config names: what a parser itself has as default is a small part."""
    add, parsers = ActionTypeHint.add_sub_defaults, []

    def noted(parser: ArgumentParser, options: Namespace) -> None:
        if "tiny" in (options.get("name"), options.get("fit.name")):
            parsers.append(getattr(parser, "subcommand", "all"))
        add(parser, options)

    monkeypatch.setattr(ActionTypeHint, "add_sub_defaults", staticmethod(noted))
    with pytest.raises(SystemExit):
        main("fit", "--config", config({}), "--print_config")
    assert parsers == ["all"]  # not ["fit", "all"]
    scheduler = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["scheduler"]
    assert scheduler["init_args"].keys() > {"warmup_steps"}  # which alone the config names
