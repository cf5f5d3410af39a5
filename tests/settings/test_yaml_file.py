"""A file that is no YAML of settings is refused in one line that names it and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError

CONTENTS = {
    "empty": (b"", "does not contain settings"),
    "a list": (b"- a\n- b\n", "does not contain settings"),
    "a number": (b"5\n", "does not contain settings"),
    "not text": (b"\xff\xfe\x00a: \xe9\n", "is not text in UTF-8 (byte 0)"),
    "not YAML": (b"a: [1\nb: 2", ", line 2, column 2 is not YAML: "),
    "a folder": (None, "is a folder. Give the path of a YAML."),
}
COMMANDS = ["init", "import-nemo", "import-recipe", "check", "status", "report", "judge"]


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_without_settings_is_named(command: str, kind: str, tmp_path: Path) -> None:
    content, said = CONTENTS[kind]
    path = tmp_path / "run.yaml"
    if content is None:
        path.mkdir()
        if command in ("status", "report", "judge"):
            pytest.skip("these take a run's folder too")
    else:
        path.write_bytes(content)
    done = CliRunner().invoke(app, [command, str(path)])
    assert isinstance(done.exception, InputError)
    message = str(done.exception)
    assert message.startswith(str(path))
    assert said in message
    assert "\n" not in message
    assert done.stdout == ""
