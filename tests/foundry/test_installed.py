"""What needs llm-foundry says which extra brings it."""

from __future__ import annotations

import sys

import pytest

from spin_composer.errors import InputError
from spin_composer.foundry.installed import foundry_is_installed, require_foundry


def test_where_it_is_missing_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llmfoundry", None)  # as good as uninstalled
    assert not foundry_is_installed()
    with pytest.raises(InputError) as caught:
        require_foundry("model.name='mpt'")
    assert str(caught.value) == (
        "model.name='mpt' needs llm-foundry, which is not installed. Install '.[foundry]' in the "
        "checkout of spin_composer, as docs/versions.md says."
    )


def test_where_it_is_installed_nothing_is_refused():
    pytest.importorskip("llmfoundry")
    assert foundry_is_installed()
    require_foundry("model.name='mpt'")
