"""The README: its length, its code, its map from the papers to the code; the links of all pages."""
import re
from pathlib import Path

import pytest

import cofi
import sparsebert
from data.harness import report
from data.harness.commands import COMMANDS

ROOT = Path(cofi.__file__).parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "data").rglob("*.md"))]


def section(title):
    """Return the text of a section of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_length():
    assert len(README.splitlines()) <= 250


def anchors(path):
    """Return the anchors of the headings of a Markdown file, as on GitHub."""
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files(page):
    """Every relative link names a file or folder, every #anchor a heading of its page."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    assert len(links) > 5 or page != PAGES[0]
    for link in links:
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_map_names_what_exists():
    """Every name in the middle of the map is in cofi.py, in sparsebert.py or in the report."""
    names = re.findall(r"`([A-Za-z_][\w.]*)`", section("From the paper to the code"))
    names = [name for name in names if "/" not in name and not name.endswith((".py", ".md"))]
    assert len(names) > 30
    for name in names:
        for module in (cofi, sparsebert, report):
            thing = module
            for part in name.split("."):
                thing = getattr(thing, part, None)
            if thing is not None:
                break
        assert thing is not None, name


def test_flags_exist():
    """Every flag in the README is one of the programs or of test_cofi.py."""
    known = {f"--{name}" for kind in (cofi.Settings, sparsebert.Settings)
             for name in kind.__dataclass_fields__}
    known |= {f"--{name}" for name in COMMANDS}
    known |= {"--no-bf16", "--help", "--guide", "--assignment", "--answer", "--grade",
              "--benchmark"}
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", README)) <= known


def test_python_code_runs(tmp_path, monkeypatch):
    """The Python code of the pages runs, on the models that `python cofi.py` leaves."""
    flags = ["--max_steps", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(report, "measure_speedup", lambda *_: {"32": 1.0})
    assert cofi.main(flags) == 0
    for name in "teacher-toy", "toy-0.9":
        (tmp_path / "out" / f"{name}-max_steps=1").rename(tmp_path / "out" / name)
    monkeypatch.chdir(tmp_path)
    pages = README + (ROOT / "data/README.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", pages, re.S)
    assert len(code) == 3
    exec(code[0], {})
    exec(code[1], {})       # the third needs an exported model
