"""--compare: a table and a chart of finished runs: score over speed-up."""
import json
import math
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev

from data.errors import UserError
from data.files import is_folder, read_json, read_text, write_text
from data.harness.charts import chart
from data.tasks import TASKS

PATHS = ("model", "teacher", "data")       # settings of which only the last word is compared
SAME = ("tokens", "weights")               # what runs must share, with PATHS, task and device
NO_NAME = {"sparsity", "seed", "task", "texts", "threads", *PATHS, *SAME}
OURS = "CoFi"                              # a run that learns its structure, without other flags
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
    for group in by(results, comparable).values():
        names, shared = names_of(group, kind)
        lines = by(group, lambda r: names[id(r)])
        lines = {name: lines[name] for name in sorted(lines, key=lambda x: (x != OURS, x))}
        first = group[0]
        words = [first["task"], first["settings"]["data"], first["settings"]["model"]]
        title = " ".join(word for word in dict.fromkeys(words) if word)
        if first["settings"]["teacher"]:
            title += f", teacher {first['settings']['teacher']}"
        heading = ", ".join([title, first["metric"], first["device"], *shared])
        print("\n".join(table(heading, lines)))
        panels.append((f"{title}: {first['metric']} over speed-up, batch 32", "speed-up",
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
        # a run of several sparsities has its results one level further down
        files = [*Path(path).glob("*/result.json"), *Path(path).glob("*/*/result.json")]
        found = {file: read_json(file) for file in sorted(files)}
    elif Path(path).is_file():
        lines = enumerate(read_text(Path(path)).splitlines(), 1)
        found = {f"{path}, line {number}": parse(line, f"{path}, line {number}")
                 for number, line in lines if line.strip()}
    else:
        raise UserError(f"--compare must be a folder of runs or a file of results, got {path}")
    # teachers and comparisons of sparsebert.py have a result.json, too
    results = [summary(r, name) for name, r in found.items()
               if isinstance(r, dict) and "target_sparsity" in r]
    if not results:
        around = f". Try {Path(path).parent}" if (Path(path) / "result.json").is_file() else ""
        raise UserError(f"--compare {path} must hold finished runs of cofi.py, got none{around}")
    return sorted(results, key=lambda r: (r["task"], r["target_sparsity"], r["seed"]))


def parse(line, place):
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} must be a result.json in one line, got {line[:40]!r}. Try a "
                        "results.jsonl of --compare FOLDER") from error


def summary(result, name):
    """Return what a comparison needs of a result.json, without folders. Raises UserError."""
    try:
        kept = {key: result[key] for key in KEPT}
        kept["settings"] = {"structure": "learned"} | kept["settings"]
        for key in PATHS:
            kept["settings"][key] = Path(kept["settings"][key]).name
        task, seed, device = kept["task"], kept["seed"], kept["device"]
        if task not in TASKS or not isinstance(seed, int) or not isinstance(device, str):
            raise ValueError(f"task {task}, seed {seed}, device {device}")
        values = [*(kept[key] for key in NUMBERS), *kept["speedup"].values(), kept["speedup"]["32"],
                  kept["seconds"]["prune"], kept["seconds"]["finetune"]]
        if all(map(math.isfinite, values)):
            return kept
        problem = f"not a number in {values}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise UserError(f"{name} is no result of cofi.py, or damaged ({problem}). Try to remove it")


def by(results, name):
    """Return {name(result): list of results}."""
    groups = defaultdict(list)
    for result in results:
        groups[name(result)].append(result)
    return groups


def comparable(result):
    """Return what the runs of one table share."""
    settings = result["settings"]
    return str([result["task"], result["device"], *(settings.get(key) for key in PATHS + SAME)])


def names_of(results, kind):
    """Return ({id of a result: name of its run}, settings that all of them share), as texts.

    A run is named by the settings that are not the default. Those that all share are left out.
    """
    task = results[0]["task"]
    # the defaults of own data depend on its size, which a result does not tell
    tasks = ["mrpc", "sst2"] if task == "custom" else [task]
    candidates = [asdict(kind.for_task(name)) for name in tasks]

    def changed(settings, defaults):
        return [f"{name}={value}" for name, value in sorted(settings.items())
                if name in defaults and name not in NO_NAME and value != defaults[name]
                or name == "sparsity" and "," in str(value)]

    defaults = min(candidates, key=lambda d: sum(len(changed(r["settings"], d)) for r in results))
    words = {id(r): changed(r["settings"], defaults) for r in results}
    shared = [word for word in words[id(results[0])]
              if all(word in other for other in words.values())]
    names = {}
    for r in results:
        own = [word for word in words[id(r)] if word not in shared]
        names[id(r)] = ", ".join(own).replace("structure=", "") or OURS
        if r["settings"]["structure"] != "learned" and not own:
            names[id(r)] = r["settings"]["structure"]
    return names, shared


def points(results):
    """Return (median speed-up, mean score) for each sparsity."""
    runs = by(results, lambda r: r["target_sparsity"]).values()
    return [(median(r["speedup"]["32"] for r in run), mean(r["score"] for r in run))
            for run in runs]


def spread(values):
    """Return `.985 ± .004`, mean and standard deviation, or the value if there is only one."""
    def short(x):
        return f"{x:.3f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.3f}"

    values = list(values)
    return f"{short(mean(values))} ± {short(stdev(values))}" if values[1:] else short(values[0])


def table(heading, lines):
    """Return the lines of a Markdown table of {name of the runs: results}.

    A row is a sparsity, as it was reached: whole layers alone miss the target. The speed-up is the
    median over the seeds, because a load on the machine can falsify one of them.
    """
    rows = [f"\n{heading}\n", "| runs | sparsity | teacher | pruned | fine-tuned | speed-up, batch "
            "1 / 32 / 128 | minutes | seeds |", "|---|---|---|---|---|---|---|---|"]
    for name, results in lines.items():
        for runs in by(results, lambda r: r["target_sparsity"]).values():
            sizes = sorted(runs[0]["speedup"], key=int)
            times = " / ".join(f"{median(r['speedup'][size] for r in runs):.1f}" for size in sizes)
            minutes = mean((r["seconds"]["prune"] + r["seconds"]["finetune"]) / 60 for r in runs)
            scores = [spread(r[key] for r in runs)
                      for key in ("teacher_score", "pruned_score", "score")]
            reached = mean(r["sparsity"] for r in runs)
            cells = [name, f"{reached:.3g}", *scores, times, f"{minutes:.1f}",
                     ", ".join(str(r["seed"]) for r in runs)]
            rows.append("| " + " | ".join(cells) + " |")
    return rows
