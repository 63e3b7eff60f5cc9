"""The .zip that Gradescope takes as an autograder: setup.sh, run_autograder, and the project.

    python test_cofi.py --autograder autograder.zip [--parts 1,3]

Gradescope unpacks it to /autograder/source, runs setup.sh once, and run_autograder for each
submission, which is in /autograder/submission; it reads /autograder/results/results.json.
"""
import zipfile

from data.course.assignment import PARTS, check_parts
from data.course.guide import ROOT
from data.errors import UserError

LEFT_OUT = ("__pycache__", ".svg")

SETUP = """\
#!/usr/bin/env bash
# Once, when the image is built. The CPU build of PyTorch is enough, and smaller: see pytorch.org.
set -e
root=${AUTOGRADER:-/autograder}
python=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || true)
if [ -z "$python" ]; then
    apt-get update && apt-get install -y python3.11 python3.11-venv
    python=python3.11
fi
"$python" -m venv "$root/venv"
"$root/venv/bin/python" -m pip install -q -r "$root/source/requirements.txt"
"""

RUN = """\
#!/usr/bin/env bash
# For each submission.
root=${AUTOGRADER:-/autograder}
mkdir -p "$root/results"
cd "$root/source"
"$root/venv/bin/python" test_cofi.py --grade "$root/submission" --results "$root/results" \\
    --parts PARTS || true
if [ ! -f "$root/results/results.json" ]; then
    text="Hand in cofi.py, sparsebert.py and answers.txt, or one .zip with them."
    echo "{\\"score\\": 0, \\"output\\": \\"$text\\"}" > "$root/results/results.json"
fi
"""


def write_autograder(path, parts=tuple(PARTS)):
    """Write the .zip, which grades some parts. Raises UserError if the path cannot be written."""
    check_parts(parts)
    run = RUN.replace("PARTS", ",".join(map(str, parts)))
    if path.suffix != ".zip":
        raise UserError(f"--autograder must be a file that ends in .zip, got {path}")
    files = [ROOT / name for name in ("cofi.py", "sparsebert.py", "test_cofi.py",
                                      "requirements.txt", "LICENSE")]
    files += [file for file in sorted((ROOT / "data").rglob("*"))
              if file.is_file() and not str(file).endswith(LEFT_OUT)
              and not set(LEFT_OUT) & set(file.parts)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in ("setup.sh", SETUP), ("run_autograder", run):
            info = zipfile.ZipInfo(name, date_time=(2000, 1, 1, 0, 0, 0))
            info.external_attr = 0o755 << 16            # executable
            archive.writestr(info, text)
        for file in files:
            archive.write(file, file.relative_to(ROOT))
    print(f"{path}: {len(files) + 2} files")
