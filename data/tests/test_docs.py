"""The README: its length, its code, and the names in its map from the papers to the code."""
import re
from pathlib import Path

import cofi
import sparsebert
from data.harness import report
from data.harness.commands import COMMANDS

ROOT = Path(cofi.__file__).parent
README = (ROOT / "README.md").read_text("utf-8")


def section(title):
    """Return the text of a section of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_length():
    assert len(README.splitlines()) <= 250


def test_links_to_files():
    """Every relative link names a file or folder, every #anchor a heading."""
    headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
                for title in re.findall(r"^#+ (.*)$", README, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert (ROOT / link).exists(), link


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
    """The Python code of the README runs, on a teacher as `python cofi.py` leaves it."""
    flags = ["--max_steps", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(report, "measure_speedup", lambda *_: {"32": 1.0})
    assert cofi.main(flags) == 0
    (tmp_path / "out" / "teacher-toy-max_steps=1").rename(tmp_path / "out" / "teacher-toy")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code) == 1
    exec(code[0], {})
