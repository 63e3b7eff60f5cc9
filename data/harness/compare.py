"""--compare: a table and a chart of finished runs: score over speed-up."""
import json
import math
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

from data.errors import UserError
from data.files import is_folder, read_json, read_text, write_text
from data.harness.charts import chart

PATHS = ("model", "teacher", "data")       # settings of which only the last word is compared
OURS = "CoFi"                              # a run with the default settings
KEPT = ("task", "metric", "seed", "teacher_score", "pruned_score", "score", "target_sparsity",
        "sparsity", "encoder_parameters", "dense_encoder_parameters", "speedup", "length",
        "seconds", "settings", "device", "versions")
NUMBERS = ("teacher_score", "pruned_score", "score", "target_sparsity", "sparsity")


def compare(path, kind):
    """Print a table of finished runs, and write it as a chart and as one file of results.

    path: a folder of runs, or a file that was written for one earlier; kind: the class of settings,
    whose defaults need no name. Raises UserError.
    """
    results = read_results(path)
    panels = []
    for title, group in by(results, lambda r: f"{r['task']}, {r['settings']['model']}").items():
        lines = by(group, namer(group, kind))
        lines = {name: lines[name] for name in sorted(lines, key=lambda x: (x != OURS, x))}
        print("\n".join(table(title, lines)))
        panels.append((f"{title}: {group[0]['metric']} over speed-up, batch 32", "speed-up",
                       {name: points(line) for name, line in lines.items()}))
    folder = Path(path) if is_folder(path) else Path(path).parent
    stem = "" if is_folder(path) else f"{Path(path).stem}-"
    write_text(folder / f"{stem}curves.svg", chart(panels))
    print(f"\nchart      {folder / f'{stem}curves.svg'}")
    if is_folder(path):
        lines = (json.dumps(r, sort_keys=True) for r in results)
        write_text(folder / "results.jsonl", "".join(f"{line}\n" for line in lines))
        print(f"results    {folder / 'results.jsonl'}, which --compare reads as well")


def read_results(path):
    """Return the results of all finished runs in a folder, or in a file with one on each line."""
    if is_folder(path):
        found = [read_json(file) for file in sorted(Path(path).glob("*/result.json"))]
    elif Path(path).is_file():
        found = [parse(line, path) for line in read_text(Path(path)).splitlines()]
    else:
        raise UserError(f"--compare must be a folder of runs or a file of results, got {path}")
    # teachers and comparisons of sparsebert.py have a result.json, too
    results = [summary(r) for r in found if isinstance(r, dict) and "target_sparsity" in r]
    if not results:
        raise UserError(f"--compare {path} must hold finished runs of cofi.py, got none")
    return sorted(results, key=lambda r: (r["task"], r["target_sparsity"], r["seed"]))


def parse(line, path):
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{path} must have one result.json on each line, got {line[:40]!r}"
                        ) from error


def summary(result):
    """Return what a comparison needs of a result.json, without folders. Raises UserError."""
    try:
        kept = {name: result[name] for name in KEPT}
        kept["settings"] = dict(kept["settings"])
        for name in PATHS:
            kept["settings"][name] = Path(kept["settings"][name]).name
        values = [kept[name] for name in NUMBERS] + list(kept["speedup"].values())
        if all(map(math.isfinite, values)) and "32" in kept["speedup"]:
            return kept
        problem = f"not a number in {values}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise UserError(f"--compare must get results of cofi.py, got a damaged one ({problem}). Try to "
                    "remove it")


def by(results, name):
    """Return {name(result): list of results}."""
    groups = defaultdict(list)
    for result in results:
        groups[name(result)].append(result)
    return groups


def namer(results, kind):
    """Return a function that names a run by the settings in which these runs differ."""
    def values(name):
        return {str(r["settings"].get(name)) for r in results}

    names = sorted({name for r in results for name in r["settings"]} - {"sparsity", "seed"})
    defaults = asdict(kind.for_task(results[0]["task"])) if results[0]["task"] != "custom" else {}
    differing = [name for name in names if len(values(name)) > 1 and name in defaults]

    def name_of(result):
        chosen = [f"{name}={result['settings'].get(name)}" for name in differing
                  if result["settings"].get(name) != defaults[name]]
        return ", ".join(chosen) or OURS

    return name_of


def points(results):
    """Return the mean (speed-up, score) for each sparsity."""
    runs = by(results, lambda r: r["target_sparsity"]).values()
    return [(mean(r["speedup"]["32"] for r in run), mean(r["score"] for r in run)) for run in runs]


def spread(values):
    """Return `.985 ± .004`, mean and standard deviation, or the value if there is only one."""
    def short(x):
        return f"{x:.3f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.3f}"

    values = list(values)
    return f"{short(mean(values))} ± {short(stdev(values))}" if values[1:] else short(values[0])


def table(title, lines):
    """Return the lines of a Markdown table of {name of the runs: results}."""
    rows = [f"\n{title}\n", "| runs | sparsity | teacher | pruned | fine-tuned | speed-up, batch "
            "1 / 32 / 128 | minutes | seeds |", "|---|---|---|---|---|---|---|---|"]
    for name, results in lines.items():
        for t, runs in by(results, lambda r: r["target_sparsity"]).items():
            sizes = sorted(runs[0]["speedup"], key=int)
            times = " / ".join(f"{mean(r['speedup'][size] for r in runs):.1f}" for size in sizes)
            minutes = mean((r["seconds"]["prune"] + r["seconds"]["finetune"]) / 60 for r in runs)
            scores = [spread(r[key] for r in runs)
                      for key in ("teacher_score", "pruned_score", "score")]
            cells = [name, f"{t:g}", *scores, times, f"{minutes:.1f}",
                     ", ".join(str(r["seed"]) for r in runs)]
            rows.append("| " + " | ".join(cells) + " |")
    return rows
