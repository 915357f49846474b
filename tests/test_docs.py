"""The documents keep their word: Python blocks run, links lead somewhere, commands and flags exist."""

import re
import runpy
from pathlib import Path

import pytest

from swindow import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


RUN = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("train.md", "segment.md", "detect.md", "checkpoints.md")),
]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks(page)
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), {})  # noqa: S102 - our own documents


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    for line in re.findall(r"^(?:\$ )?swindow (\S+)", page.read_text(encoding="utf-8"), flags=re.M):
        assert line in {*cli.COMMANDS, "--help"}, f"{page.name} shows swindow {line}"


def shown(page):
    """Command and flags of every line of a page that begins with ``swindow``, comments aside."""
    for line in re.findall(r"^(?:\$ )?swindow (.*)", page.read_text(encoding="utf-8"), flags=re.M):
        command, *words = line.split(" # ")[0].split()
        yield command, {word for word in words if word.startswith("--")} - {"--help", "--debug"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page, capsys):
    for command, flags in shown(page):
        if flags:
            with pytest.raises(SystemExit):
                cli.main([command, "--help"])
            known = set(re.findall(r"--[a-z][a-z.-]+", capsys.readouterr().out))
            assert flags <= known, f"{page.name} shows swindow {command} {' '.join(flags - known)}"


def test_the_table_of_models_is_up_to_date():
    namespace = runpy.run_path(str(ROOT / "docs" / "models_table.py"))
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == namespace["page"]()


def test_every_flag_in_the_guide_exists(capsys):
    guide = "".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("train.md", "segment.md", "detect.md")
    )
    guide = re.sub(r"^swindow .*", "", guide, flags=re.M)  # flags of other commands too: tested above
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    known = capsys.readouterr().out
    for flag in set(re.findall(r"--[a-z][a-z.-]+", guide)) - {"--help"}:
        assert flag in known, f"the guide shows {flag}"
