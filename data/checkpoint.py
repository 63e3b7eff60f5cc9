"""Models on disk: config.json and pytorch_model.bin, with the names of every BERT checkpoint."""
import json
import re

import numpy as np
import torch

from data.errors import UserError
from data.files import read_tensors, write_json, write_tensors, write_text
from data.hub import fetch

HF_TO_OURS = [            # replaced in this order
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", "mha."),
    ("attention.output.dense", "mha.out"),
    ("attention.output.LayerNorm", "mha.norm"),
    ("intermediate.dense", "ffn.up"),
    ("output.dense", "ffn.down"),
    ("output.LayerNorm", "ffn.norm"),
    ("pooler.dense", "pooler"),
]
TF_TO_HF = [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]
IGNORED_KEYS = r"cls\.|embeddings\.position_ids$"     # pre-training heads; a constant
REQUIRED_CONFIG = {"model_type": "bert", "hidden_act": "gelu",
                   "position_embedding_type": "absolute"}
SAME_MODEL = "Try the weights and the config of one model"


# ---- config.json ---------------------------------------------------------------------------------


def read_config(model):
    """Read config.json of a model (a folder or a hub name) as keywords of cofi.Config.

    Besides the keys of every BERT it reads those that write_checkpoint adds for a pruned model:
    attention_head_size, heads_per_layer, ffn_per_layer, pooler_size. Raises UserError.
    """
    path = fetch(model, "config.json")
    try:
        c = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Try to download or save it again"
                        ) from error
    for key, required in REQUIRED_CONFIG.items():
        if c.get(key, required) != required:
            raise UserError(f"{path}: {key} must be {required!r}, got {c[key]!r}. Try another "
                            "model")
    try:
        d, h, L = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
        is_pruned = "attention_head_size" in c
        if not is_pruned and (h < 1 or d % h):
            raise UserError(f"{path}: hidden_size must be a multiple of num_attention_heads, got "
                            f"{d} and {h}. Try the config of a BERT")
        names = c.get("id2label") or {}
        id2label = [names[str(i)] for i in range(len(names))] if len(names) > 1 else None
        return {
            "vocab_size": c["vocab_size"],
            "max_position_embeddings": c["max_position_embeddings"],
            "type_vocab_size": c.get("type_vocab_size", 2),
            "hidden_size": d,
            "attention_head_size": c["attention_head_size"] if is_pruned else d // h,
            "heads_per_layer": c.get("heads_per_layer", [h] * L),
            "ffn_per_layer": c.get("ffn_per_layer", [c["intermediate_size"]] * L),
            "pooler_size": c.get("pooler_size", d),
            "dropout": c.get("hidden_dropout_prob", 0.1),
            "layer_norm_eps": c.get("layer_norm_eps", 1e-12),
            "id2label": id2label,
            "task": c.get("finetuning_task") or ""}
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing. Try the config of a BERT") from error


# ---- Weights -------------------------------------------------------------------------------------


def load_tensors(model):
    """Return {name: tensor} of pytorch_model.bin, or of model.safetensors if there is none.

    Runs no code of the file. Raises UserError.
    """
    path = fetch(model, "pytorch_model.bin", optional=True)
    path = path or fetch(model, "model.safetensors", optional=True)
    path = path or fetch(model, "pytorch_model.bin")        # raises: it says what is missing
    return read_tensors(path)


def tf_to_hf(name):
    for old, new in TF_TO_HF:
        name = name.replace(old, new)
    return name


def rename_keys(tensors):
    """Return the tensors under our names and in fp32, without the pre-training heads."""
    ours = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^bert\.", "", tf_to_hf(name))
        if not re.match(IGNORED_KEYS, name):
            for theirs, mine in [*HF_TO_OURS, ("qa_outputs.", "classifier.")]:
                name = name.replace(theirs, mine)
            ours[name] = tensor.float()
    return ours


def read_weights(model):
    """Return {our name: fp32 tensor} of a pre-trained model. Raises UserError."""
    return rename_keys(load_tensors(model))


def read_finetuned(model):
    """Read a fine-tuned model: (keywords of cofi.Config, {our name: tensor}). Raises UserError.

    Where config.json still holds the sizes from before pruning, as in the checkpoints that CoFi's
    authors released, the sizes are read off the tensors. A removed sub-layer may have left its
    LayerNorm behind.
    """
    path, tensors = fetch(model, "config.json"), load_tensors(model)
    config, weights = read_config(model), rename_keys(tensors)
    outputs = len(weights.get("classifier.weight", ()))
    if not outputs:
        raise UserError(f"{model}: there is no classifier in it. Try a fine-tuned model")
    config["is_span"] = "qa_outputs.weight" in tensors
    if config["is_span"] or outputs == 1:
        config["id2label"] = None
    elif not config["id2label"]:                # transformers leaves default names out
        config["id2label"] = [f"LABEL_{i}" for i in range(outputs)]
    if "heads_per_layer" not in json.loads(path.read_text()):
        sizes = infer_sizes(weights, config)
        for key, size in sizes.items():
            if (np.array(size) > np.array(config[key])).any():
                raise UserError(f"{path}: {key} is {config[key]}, but the weights have {size}. "
                                f"{SAME_MODEL}")
        config |= sizes
    unused = ["pooler."] if config["is_span"] else []
    for part, key in (("mha", "heads_per_layer"), ("ffn", "ffn_per_layer")):
        unused += [f"layers.{i}.{part}.norm." for i, size in enumerate(config[key]) if not size]
    weights = {name: w for name, w in weights.items() if not name.startswith(tuple(unused))}
    return config, weights


def infer_sizes(weights, config):
    """Read hidden_size, heads_per_layer and ffn_per_layer off the weights."""
    layers = range(len(config["heads_per_layer"]))
    word = weights.get("embeddings.word.weight", np.empty((0, config["hidden_size"])))
    queries = [len(weights.get(f"layers.{i}.mha.query.weight", ())) for i in layers]
    return {"hidden_size": word.shape[1],
            "heads_per_layer": [rows // config["attention_head_size"] for rows in queries],
            "ffn_per_layer": [len(weights.get(f"layers.{i}.ffn.up.weight", ())) for i in layers]}


def load_weights(bert, weights, model):
    """Load weights into a network and return it. Raises UserError unless names and shapes agree.

    model: the name of the model, for the error.
    """
    expected = bert.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        got, needed = (tuple(w[name].shape) if name in w else "absent" for w in (weights, expected))
        if got != needed:
            raise UserError(f"{model}: {name} is {got} in its weights, but {needed} by "
                            f"config.json. {SAME_MODEL}")
    bert.load_state_dict(weights)
    return bert


def load_encoder(bert, weights, model):
    """Load a pre-trained encoder. The classifier stays as it was initialized.

    So does the pooler if the model has none, or one that was never trained (all biases 0). Returns
    notes for the user, one line each. Raises UserError as load_weights.
    """
    notes, new_parts = [], ["classifier"]
    if "classifier.weight" in weights:
        notes.append(f"{model}: classifier does not match this task, initializing a new one")
    if bert.config.is_span:             # a span head reads the tokens; there is no pooler
        new_parts.append("pooler")
    elif "pooler.bias" not in weights:
        new_parts.append("pooler")
        notes.append(f"{model}: pooler is absent, initializing a new one")
    elif not weights["pooler.bias"].any():
        new_parts.append("pooler")
        notes.append(f"{model}: pooler was never trained, initializing a new one")

    def is_new(name):
        return name.split(".")[0] in new_parts

    kept = {name: w for name, w in weights.items() if not is_new(name)}
    initialized = {name: w for name, w in bert.state_dict().items() if is_new(name)}
    load_weights(bert, kept | initialized, model)
    return notes


@torch.no_grad()
def align_labels(bert, names, is_span, model):
    """Reorder the outputs of a fine-tuned model to the class order of a task, by name. In place.

    names: the task's classes, or None; model: the name of the model, for the error. Raises
    UserError where it has other classes: a model with permuted classes would only seem to be bad.
    """
    own, needed = bert.config.id2label or [], names or []
    if sorted(own) != sorted(needed):           # ignore case, unless it tells two classes apart
        own, needed = ([name.casefold() for name in x] for x in (own, needed))
    same = sorted(own) == sorted(needed) and len(set(own)) == len(own)
    if not same or is_span != bert.config.is_span:
        kind = " (spans)" if is_span else ""
        raise UserError(f"{model}: its classes are {bert.config.id2label}, the task's "
                        f"{names}{kind}. Try a model of this task whose config.json names its "
                        "classes, in order, as id2label")
    if needed:
        order = [own.index(name) for name in needed]
        for p in bert.classifier.parameters():
            p.copy_(p[order])
        bert.config.id2label = list(names)


def read_mlm_head(model, device):
    """Read the masked-LM head of a pre-trained BERT. Its last matrix is the word embeddings.

    Returns {"dense": (weight, bias), "norm": (weight, bias), "bias": (vocab)}. Raises UserError.
    """
    tensors = load_tensors(model)
    w = {tf_to_hf(name): tensor.float().to(device) for name, tensor in tensors.items()}

    def pair(part):
        prefix = f"cls.predictions.transform.{part}"
        return w[f"{prefix}.weight"], w[f"{prefix}.bias"]

    try:
        return {"dense": pair("dense"), "norm": pair("LayerNorm"),
                "bias": w["cls.predictions.bias"]}
    except KeyError as error:
        raise UserError(f"{model}: there is no masked-LM head in it ({error.args[0]} is missing). "
                        "Try --augment 0, or a checkpoint with its pre-training heads") from error


# ---- Writing -------------------------------------------------------------------------------------


def write_checkpoint(folder, config, weights, tokenizer):
    """Write config.json, pytorch_model.bin and tokenizer.json: tensors and JSON only.

    config: the fields of a cofi.Config, as a dict; weights: {our name: tensor}.
    """
    tensors = {}
    for name, tensor in weights.items():
        for theirs, mine in reversed(HF_TO_OURS):
            name = name.replace(mine, theirs)
        prefix = "" if name.startswith(("classifier.", "cls.")) else "bert."
        if config["is_span"]:
            name = name.replace("classifier.", "qa_outputs.")
        tensors[prefix + name] = tensor.cpu().contiguous()
    write_tensors(folder / "pytorch_model.bin", tensors)
    tokenizer.no_truncation()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "config.json", config_on_disk(config))


def config_on_disk(c):
    """Return config.json as a dict: the keys of every BERT, and those of a pruned one."""
    kind = "QuestionAnswering" if c["is_span"] else "SequenceClassification"
    on_disk = {
        "architectures": [f"BertFor{kind}"], **REQUIRED_CONFIG, "finetuning_task": c["task"],
        "num_hidden_layers": len(c["heads_per_layer"]),
        "num_attention_heads": max(c["heads_per_layer"]),
        "intermediate_size": max(c["ffn_per_layer"]),
        "hidden_dropout_prob": c["dropout"], "attention_probs_dropout_prob": c["dropout"]}
    for key in ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size",
                "attention_head_size", "heads_per_layer", "ffn_per_layer", "pooler_size",
                "layer_norm_eps"):
        on_disk[key] = c[key]
    if c["id2label"]:
        on_disk["id2label"] = dict(enumerate(c["id2label"]))
        on_disk["label2id"] = {name: i for i, name in enumerate(c["id2label"])}
    return on_disk
