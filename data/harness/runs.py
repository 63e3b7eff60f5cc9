"""One run: its device and tokenizer, its folder, its teacher, and which settings runs share."""
import hashlib
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from data.checkpoint import align_labels, read_config, weights_path, write_checkpoint
from data.errors import UserError
from data.files import file_digest, is_folder, read_json, write_json
from data.harness.console import cofi_line
from data.harness.device import pick_device, set_threads
from data.harness.evaluate import evaluate_dev
from data.harness.journal import Journal, diff_settings
from data.hub import fetch
from data.tasks import load_task
from data.tokenizer import check_same_tokenizer, load_tokenizer

NOT_IN_RUN_KEY = {"out", "overwrite", "save_every", "device"}   # they do not change the result
TEACHER_KEY_FIELDS = ("task", "data", "model", "seed", "batch_size", "max_length", "teacher_epochs",
                      "teacher_lr", "bf16", "max_steps")


def setup(cfg, make_config):
    """Prepare a run: (device, tokenizer, Config of the model). Sets the number of threads.

    make_config: cofi.Config. Raises UserError for a model that is pruned already.
    """
    set_threads(cfg.threads)
    sizes = read_config(cfg.model)
    tokenizer = load_tokenizer(cfg.model, sizes["vocab_size"])
    for key in ("heads_per_layer", "ffn_per_layer"):
        if len(set(sizes[key])) > 1 or 0 in sizes[key]:
            raise UserError(f"--model must be a dense model, got {cfg.model}, which is pruned "
                            "already. Try the model it came from")
    return pick_device(cfg.device), tokenizer, make_config(**sizes)


def load_data(cfg, config, tokenizer):
    """Load the task of a run. Returns the Dataset, and the Config of a model for this task."""
    if cfg.max_length != cfg.for_task(cfg.task, cfg.data).max_length:
        check_max_length(cfg.max_length, config, cfg.model)
    max_length = min(cfg.max_length, config.max_position_embeddings)
    # a teacher from the hub may be from elsewhere: of a folder it is known what it was trained on
    known = settings_of(cfg.teacher) if cfg.teacher and is_folder(cfg.teacher) else {}
    data = load_texts(cfg.task, tokenizer, max_length, cfg.data, known, f"--teacher {cfg.teacher}")
    check_token_types(config, data.columns, f"--model {cfg.model}")
    return data, replace(config, id2label=data.names, is_span=data.is_span, task=cfg.task)


def settings_of(model):
    """Return the settings of the run that made a model, from its result.json; {} without one.

    Raises UserError if they are damaged.
    """
    path = fetch(model, "result.json", optional=True)
    result = read_json(path) if path else {}
    settings = result.get("settings", {})
    if not isinstance(settings, dict):          # another program's result.json
        return {}
    # the teacher of a run has its texts beside its settings
    texts = settings.setdefault("texts", result.get("texts", []))
    if not isinstance(texts, list) or not all(isinstance(name, str) for name in texts):
        raise UserError(f"{path} is damaged: texts must be names, got {texts}. Try to delete it")
    for name, kind in ("task", str), ("data", str), ("max_length", int):
        if not isinstance(settings.get(name, kind()), kind):
            raise UserError(f"{path} is damaged: {name} must be {kind.__name__}, got "
                            f"{settings[name]!r}. Try to delete it")
    return settings


def load_texts(task, tokenizer, max_length, folder, known, model):
    """Load a task for a model: with the texts that it was trained on, in this order, if their names
    are the same. known: settings_of(model). Raises UserError for another number of texts.
    """
    trained = known.get("texts") or ()
    data = load_task(task, tokenizer, max_length, folder, trained)
    if not trained:
        return data
    if len(trained) != len(data.columns):
        raise UserError(f"{model} must get data with {len(trained)} texts ({', '.join(trained)}), "
                        f"as in training, got {len(data.columns)} ({', '.join(data.columns)}). Try "
                        "other data")
    if [name.lower() for name in trained] != [name.lower() for name in data.columns]:
        print(f"note       {model} was trained on the texts {', '.join(trained)}. Now it reads "
              f"{', '.join(data.columns)}")
    return data


def check_max_length(max_length, config, model):
    """Raise UserError if a model cannot read as many tokens."""
    if max_length > config.max_position_embeddings:
        raise UserError(f"--max_length must be at most {config.max_position_embeddings}, as many "
                        f"positions as {model} has, got {max_length}")


def check_token_types(config, texts, model):
    """Raise UserError for a pair of texts if the model knows one token type only."""
    if len(texts) > config.type_vocab_size:
        raise UserError(f"{model} must have a type_vocab_size of {len(texts)} to read "
                        f"{len(texts)} texts, got {config.type_vocab_size}. Try another model, or "
                        "data with one text column")


@torch.no_grad()
def max_sparsity(masks):
    """Return the highest sparsity that masks can reach without closing the whole encoder.

    masks: cofi.Masks. Heads alone, for example, are only a third of the encoder.
    """
    closed = {group: a.isinf().float() for group, a in masks.log_alpha().items()}
    # If that leaves nothing, the smallest network is one head of one MHA, or one unit of one FFN,
    # on one hidden dimension. A group that is switched off stays as it is.
    one = {group: z.clone() for group, z in closed.items()}
    for z in one.values():
        z.view(-1)[0] = 1
    without_mha = one | {"z_mha": closed["z_mha"]}
    without_ffn = one | {"z_ffn": closed["z_ffn"]}
    reached = [masks.sparsity(z).item() for z in (closed, without_mha, without_ffn)]
    return max(s for s in reached if s < 1)


def check_reachable(masks, cfg):
    """Raise UserError if these masks cannot reach the target sparsity."""
    highest = max_sparsity(masks)
    target = cfg.sparsities()[-1]
    if target > highest:
        highest = math.floor(highest * 1000) / 1000
        raise UserError(f"--sparsity must be at most {highest:g} with --masks {cfg.masks}, got "
                        f"{target:g}. Try a lower sparsity, or more masks")


# ---- folders and settings ------------------------------------------------------------------------


def run_dir(cfg, prefix, names=None):
    """Return the folder of a run or teacher: cfg.out / the prefix and every changed setting.

    prefix: list of words; names: the settings that may appear in the name, all but sparsity if
    None.
    """
    names = names or {field.name for field in fields(cfg)} - {"sparsity"}
    defaults = asdict(cfg.for_task(cfg.task, cfg.data)) | {"data": ""}
    words = [str(word) for word in prefix]
    for name, value in asdict(cfg).items():
        if name in NOT_IN_RUN_KEY | {"task"} or name not in names or value == defaults[name]:
            continue
        text = Path(value).name if isinstance(value, str) else str(value)
        words.append(f"{name}={text}")
    name = re.sub(r"[^\w.,=-]", "_", "-".join(words))
    long = name.encode()
    if len(long) > 200:                                 # file systems allow 255 bytes
        name = f"{long[:190].decode(errors='ignore')}-{hashlib.sha256(long).hexdigest()[:8]}"
    return Path(cfg.out) / name


def resume_key(cfg, data):
    """Return what two runs must share for one to continue the other: settings, tokens and labels,
    weights.
    """
    key = {name: value for name, value in asdict(cfg).items() if name not in NOT_IN_RUN_KEY}
    key |= {"texts": list(data.columns), "tokens": data.digest,
            "weights": file_digest(weights_path(cfg.model))}
    if cfg.teacher:
        key["teacher_weights"] = file_digest(weights_path(cfg.teacher))
    return key


def load_finished(folder, key, overwrite=False, keep_states=False):
    """Return result.json of a finished run, or None if there is none with these settings.

    keep_states: keep its checkpoints, because the run has further models to make. Raises UserError
    if the folder holds a run with other settings, unless it may be overwritten.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        result = read_json(path, "Use --overwrite to start over")
        changed = diff_settings(result.get("settings"), key)
    except UserError:
        if overwrite:
            return None
        raise
    if not changed:
        if "sha256" in result and not (folder / "pytorch_model.bin").exists():
            raise UserError(f"{folder} holds a finished run without its model. Use --overwrite to "
                            "make it again")
        # what a run leaves that was killed between its result and its last breath
        for rest in [] if keep_states else [*folder.glob("*.state"), folder / "lock"]:
            rest.unlink(missing_ok=True)
        return result
    if overwrite:
        return None
    raise UserError(f"{folder} holds a run with different settings ({changed}). Use --overwrite to "
                    "replace it, or another --out")


def check_model(folder, result):
    """Raise UserError if files of the model of a finished run are missing or damaged."""
    if "sha256" not in result:          # a comparison of sparsebert.py has its models in folders
        return
    path = folder / "pytorch_model.bin"
    names = [name for name in ("config.json", "tokenizer.json")
             if not (folder / name).is_file() or not read_json(folder / name, "Use --overwrite")]
    if file_digest(path) != result["sha256"]:
        names.append(path.name)
    if names:
        raise UserError(f"{folder} holds a finished run without the {' and '.join(names)} that it "
                        "has written. Use --overwrite to make it again")


def open_journal(folder, key, cfg, format_line):
    """Return the Journal of a folder, with the settings of the run."""
    return Journal(folder, key, format_line, cfg.save_every, cfg.overwrite)


def folders_inside(folder, cfg):
    """Return a folder for each of several sparsities of a run of cofi.py; none if it has one."""
    targets = cfg.sparsities()
    return [folder / str(t) for t in targets] if targets[1:] else []


def open_journals(folder, key, cfg, format_line):
    """Yield (sparsity, settings, Journal) for each sparsity of a run of cofi.py.

    One sparsity has the folder of the run. Of several, each has a folder inside, and the settings
    name the sparsities up to it. All checkpoints are kept until the last one is finished: a run
    that resumes walks through them to where it was.
    """
    targets, inside = cfg.sparsities(), folders_inside(folder, cfg)
    # all at once: --overwrite removes every earlier result before the first new one
    journals = [open_journal(path, key, cfg, format_line) for path in inside or [folder]]
    for i, (t, journal) in enumerate(zip(targets, journals)):
        if inside:
            print(f"\nsparsity   {t}, in {journal.folder}")
            cfg = replace(cfg, sparsity=",".join(map(str, targets[:i + 1])))
        yield t, cfg, journal
    for journal in journals:
        journal.finish()


def save_model(folder, bert, tokenizer, result):
    """Write a model and its result. result.json comes last: it says that everything is there."""
    path = write_checkpoint(folder, asdict(bert.config), bert.state_dict(), tokenizer)
    write_json(folder / "result.json", result | {"sha256": file_digest(path)})


# ---- the teacher ---------------------------------------------------------------------------------


def get_teacher(cfg, config, data, tokenizer, device, load_finetuned, load_pretrained, train):
    """Return the teacher: the one given, one trained earlier with these settings, or a new one.

    load_finetuned, load_pretrained, train: the functions of cofi.py.
    Returns (BERT in eval mode, {metric: dev score}, seconds of training).
    """
    if cfg.teacher:
        teacher = load_finetuned(cfg.teacher).to(device).eval()
        align_labels(teacher, data.names, data.is_span, f"--teacher {cfg.teacher}")
        other = load_tokenizer(cfg.teacher, teacher.config.vocab_size)
        check_same_tokenizer(tokenizer, other, cfg.model, cfg.teacher)
        for name in ("vocab_size", "max_position_embeddings"):
            size, needed = getattr(teacher.config, name), getattr(config, name)
            if size < needed:
                raise UserError(f"--teacher must have the vocabulary of {cfg.model} and a {name} "
                                f"of at least {needed}, got {cfg.teacher} with {size}")
        print(f"teacher    {cfg.teacher}, as given: it is not trained")
        return teacher, evaluate_dev(teacher, data), 0.0
    folder = run_dir(cfg, ["teacher", cfg.task], set(TEACHER_KEY_FIELDS))
    key = {name: getattr(cfg, name) for name in TEACHER_KEY_FIELDS}
    key |= {"tokens": data.digest, "weights": file_digest(weights_path(cfg.model))}
    finished = load_finished(folder, key, cfg.overwrite)
    if finished:
        try:
            teacher = load_finetuned(folder).to(device).eval()
            scores = {name: float(finished["scores"][name]) for name in data.metrics}
            print(f"teacher    {folder}, trained earlier")
            return teacher, finished["scores"] | scores, float(finished["seconds"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            if not cfg.overwrite:
                raise UserError(f"{folder} holds a damaged teacher ({error}). Use --overwrite to "
                                "train it again") from error
    journal = open_journal(folder, key, cfg, cofi_line)
    teacher, _ = load_pretrained(cfg.model, config, cfg.seed)
    teacher.to(device)
    last, seconds = train("teacher", teacher, data, cfg, journal)
    scores = last["scores"]
    save_model(folder, teacher, tokenizer, {
        "settings": key, "scores": scores, "seconds": seconds, "texts": list(data.columns)})
    journal.finish()
    return teacher.eval(), scores, seconds
