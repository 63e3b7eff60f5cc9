"""What came of a run: speed-up, result.json, charts and the printed report."""
import contextlib
import math
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

from data.errors import UserError
from data.files import read_json, read_text, write_text
from data.harness.charts import plot_run
from data.harness.device import device_name, peak_memory, synchronize, to_device
from data.harness.drawing import draw_structure, for_encoding
from data.harness.runs import (check_model, folders_inside, load_finished, resume_key, run_dir,
                               save_model)


def measured_length(config, length=128):
    """Return how many tokens a row has where speed is measured: at most as many as the model reads.
    """
    return min(length, config.max_position_embeddings)


@torch.no_grad()
def measure_speedup(dense, small, batch_sizes=(1, 32, 128), length=128, seconds=5.0):
    """Measure how many times faster the small network is: {batch size: ratio of median times}.

    Forward passes in fp32 over random tokens without padding. The two networks take turns, so that
    other load on the machine meets both: at least three turns, more until `seconds` have passed.
    """
    device = dense.classifier.weight.device
    length = measured_length(dense.config, length)
    models = [dense.eval(), small.eval()]
    ratios = {}
    for batch_size in batch_sizes:
        input_ids = torch.randint(dense.config.vocab_size, (batch_size, length))
        inputs, _ = to_device(device, {
            "input_ids": input_ids, "token_type_ids": torch.zeros_like(input_ids),
            "attention_mask": torch.ones_like(input_ids, dtype=torch.bool)})
        times, end = ([], []), time.perf_counter() + seconds
        while len(times[0]) < 4 or time.perf_counter() < end:
            for model, seen in zip(models, times):
                synchronize(device)
                start = time.perf_counter()
                model(**inputs)
                synchronize(device)
                seen.append(time.perf_counter() - start)
        dense_time, small_time = (np.median(seen[1:]) for seen in times)    # the first warms up
        ratios[str(batch_size)] = float(dense_time / small_time)
    return ratios


def library_versions():
    return {name: version(name) for name in ("torch", "numpy", "datasets", "tokenizers")}


def run_result(cfg, key, device, scores, weights, seconds, speedup, length):
    """Return result.json of a run of cofi.py, as a dict.

    scores: {"teacher", "pruned", "finetuned": {metric: value}}; weights: {"encoder", "total":
    (number before, after pruning)}; seconds: {stage: seconds}; speedup: of this length.
    """
    metric = next(iter(scores["finetuned"]))
    dense_encoder, encoder = weights["encoder"]
    dense_total, total = weights["total"]
    return {
        "task": cfg.task, "model": cfg.model, "seed": cfg.seed, "metric": metric,
        "teacher_score": scores["teacher"][metric], "pruned_score": scores["pruned"][metric],
        "score": scores["finetuned"][metric], "scores": scores["finetuned"],
        "teacher_scores": scores["teacher"], "pruned_scores": scores["pruned"],
        "target_sparsity": cfg.sparsities()[-1], "sparsity": 1 - encoder / dense_encoder,
        "encoder_parameters": encoder, "dense_encoder_parameters": dense_encoder,
        "total_parameters": total, "dense_total_parameters": dense_total,
        "speedup": speedup, "length": length, "seconds": seconds, "settings": key,
        "peak_memory": peak_memory(device), "device": device_name(device),
        "versions": library_versions()}


def finish_run(cfg, journal, tokenizer, student, small, z, distilled, last, scores, seconds,
               count_encoder_weights):
    """Measure the speed-up, write everything that a run of cofi.py leaves, and print the report.

    Of several sparsities, a run that resumes comes again to models that were finished before: they
    are only reported.

    student, small: the network before and after pruning; z: the final masks; distilled: teacher
    layers; last: what fine-tuning logged last; scores: {"teacher", "pruned": {metric: value}};
    seconds: {stage: seconds}.
    """
    folder, device = journal.folder, student.classifier.weight.device
    finished = load_finished(folder, journal.settings, keep_states=True)
    if finished:
        print_report(folder, finished)
        return
    length, speedup = measured_length(student.config), measure_speedup(student, small)
    scores = scores | {"finetuned": last["scores"]}
    weights = {"encoder": [count_encoder_weights(bert) for bert in (student, small)],
               "total": [sum(p.numel() for p in bert.parameters()) for bert in (student, small)]}
    result = run_result(cfg, journal.settings, device, scores, weights, seconds, speedup, length)
    picture = draw_structure(student.config, z, distilled, last["m"])
    write_text(folder / "network.txt", f"{picture}\n")
    write_curves(folder, journal.records(), distilled, result)
    save_model(folder, small, tokenizer, result)
    print_report(folder, result)


def find_run(cfg, data, words, print_result):
    """Find where a run belongs, and print its report if it was finished earlier.

    words: as run_dir takes them; print_result(folder, result): prints a report. Returns (folder,
    resume_key, whether it was finished).
    """
    folder, key = run_dir(cfg, words), resume_key(cfg, data)
    inside = folders_inside(folder, cfg)
    # several models of cofi.py: finished if each of them is
    folders = inside if all((path / "result.json").exists() for path in inside) else []
    results = {}
    if not cfg.overwrite:
        results = {path: load_finished(path, key) for path in folders or [folder]}
    is_finished = any(results.values())
    if is_finished:
        print(f"run        {folder}, finished earlier. Use --overwrite to replace it")
    for path, result in results.items():
        if result:
            check_model(path, result)
            print_earlier(path, result, print_result)
    return folder, key, is_finished


def print_earlier(folder, result, print_result):
    """Print the report of a run that was finished earlier. Raises UserError if it is damaged."""
    try:
        print_result(folder, result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'result.json'} is damaged ({type(error).__name__}: {error}"
                        "). Use --overwrite to start over") from error


def write_curves(folder, records, distilled, result):
    """Write curves.svg of a run; its last chart shows all comparable runs under the same --out."""
    results = []
    for path in folder.parent.glob("*/result.json"):
        # another run's file may be damaged; it is no reason to stop this run
        with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError,
                                 AttributeError):
            other = read_json(path)
            same = (other["settings"]["weights"] == result["settings"]["weights"]
                    and other["settings"]["tokens"] == result["settings"]["tokens"]
                    and other["device"] == result["device"])
            point = (float(x) for x in (other["target_sparsity"], other["speedup"]["32"],
                                        other["score"]))
            if same and path.parent != folder and all(map(math.isfinite, point)):
                results.append(other)
    write_text(folder / "curves.svg", plot_run(records, distilled, [*results, result]))


def print_report(folder, result):
    """Print what came of a run. folder: of the run; result: its result.json."""
    r = result
    if (folder / "network.txt").is_file():
        print("\n" + for_encoding(read_text(folder / "network.txt"), sys.stdout.encoding))
    for name, score in r["scores"].items():
        print(f"{name:11} teacher {r['teacher_scores'][name]:.4f}   "
              f"pruned {r['pruned_scores'][name]:.4f}   fine-tuned {score:.4f}")
    print(f"sparsity   {r['sparsity']:.5f}, target {r['target_sparsity']:g}")
    print(f"weights    encoder {r['dense_encoder_parameters']:,} -> {r['encoder_parameters']:,}   "
          f"whole model {r['dense_total_parameters']:,} -> {r['total_parameters']:,}")
    times = [f"{ratio:.1f}x at batch {size}" for size, ratio in r["speedup"].items()]
    print(f"speed-up   {'   '.join(times)}   (length {r['length']}, fp32, {r['device']})")
    if r.get("peak_memory"):
        print(f"memory     {r['peak_memory'] / 1e9:.1f} GB at most")
    print("minutes    " + "   ".join(f"{name} {x / 60:.1f}" for name, x in r["seconds"].items()))


# ---- sparsebert.py -------------------------------------------------------------------------------


def comparison_table(rows, labels):
    """Return the comparison of strategies as text: dev scores, the fit of the training set, and the
    accuracy of the pre-trained masked-LM head on the encoder as it is now ("general").

    rows: from sparsebert.Comparison; labels: {strategy: how it is printed}.
    """
    metrics = list(rows[-1]["scores"])

    def number(value, width):
        return f"{'-':>{width}}" if value is None else f"{value:{width}.4f}"

    widths = {name: max(12, len(name) + 2) for name in metrics}
    header = "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = [f"sparsity  {'':28}{'weights':>12}{header}  training set   general   minutes"]
    for row in rows:
        scores = "".join(number(row["scores"].get(name), widths[name]) for name in widths)
        label = labels.get(row["strategy"], row["strategy"])
        lines.append(f"{row['sparsity']:<10g}{label:28}{row['kept']:12,}{scores}"
                     f"{number(row['train'], 14)}{number(row['general'], 10)}"
                     f"{row['seconds'] / 60:10.1f}")
    lines.append("general: how many masked words of held-out text the frozen masked-LM head of the "
                 "pre-trained\ncheckpoint finds on this encoder (-: the checkpoint has none)")
    return "\n".join(lines)


def print_compression(result):
    """Print what the zeros of a model are worth, each beside its dense counterpart.

    result: result.json of the run.
    """
    print(f"\nWhat the zeros of {result['sparse']} are worth")
    for what, (dense, now) in result["counts"].items():
        print(f"  {what:22}{dense:>14,} -> {now:<14,}{dense / now:5.1f}x")
    sparse, dense = result["bytes"]
    print(f"  {'bytes of the matrices':22}{dense:>14,} -> {sparse:<14,}{dense / sparse:5.1f}x   "
          "in sparse.bin; pytorch_model.bin stays as large as before")
    times = "   ".join(f"{ratio:.1f}x at {size}" for size, ratio in result["speedup"].items())
    print(f"  speed-up on the CPU, CSR matrices: {times}   (rows x length, fp32, "
          f"{result.get('threads', '?')} threads)")
    if not result["device"].startswith("cpu"):
        print("  On a GPU single zeros give no speed-up: they are multiplied like other numbers")
