"""The set-up that runs before anything is installed: what it says when it can't, and when it has nothing to do."""

import sys

import pytest

from tools import setup_venv


def test_a_python_that_is_too_old_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert setup_venv.main([]) == 1
    assert "is too old: 3.10 or newer is needed" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_without_venv_says_what_to_install(monkeypatch, capsys, missing):
    monkeypatch.setattr(setup_venv, "find_spec", lambda name: None if name == missing else object())
    assert setup_venv.main([]) == 1
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in capsys.readouterr().err


def test_what_is_up_to_date_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_venv, "run", lambda *command: pytest.fail(f"ran {command}"))
    (tmp_path / "made-from.txt").write_text(setup_venv.description(), encoding="utf-8")
    assert setup_venv.main([str(tmp_path)]) == 0


def test_a_failed_installation_leaves_no_stamp(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup_venv, "run", lambda *command: 1 if "pip" in command else 0)
    assert setup_venv.main([str(tmp_path)]) == 1
    assert not (tmp_path / "made-from.txt").exists()
    assert "pip could not install" in capsys.readouterr().err


def test_changed_requirements_are_installed_again(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(setup_venv, "run", lambda *command: commands.append(command) or 0)
    (tmp_path / "made-from.txt").write_text("requirements-dev.txt of last year", encoding="utf-8")
    assert setup_venv.main([str(tmp_path)]) == 0
    assert [command for command in commands if "install" in command]
    assert (tmp_path / "made-from.txt").read_text(encoding="utf-8") == setup_venv.description()
