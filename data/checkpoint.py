"""A model on disk: config.json and pytorch_model.bin, named as in every BERT checkpoint."""
import json
import re

import numpy as np

from .files import read_tensors, write_json, write_tensors, write_text
from .hub import BadInput, fetch

NAMES = [                 # theirs, ours; replaced in this order
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.segment"),
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
OLD_NAMES = [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]
NOT_OURS = r"cls\.|embeddings\.position_ids$"     # pre-training heads; a constant
MUST_BE = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def read_config(model):
    """The sizes of a model (a folder or a hub name), as keywords, from its config.json.

    Beside the keys of every BERT it understands those that write_checkpoint adds for a cut model:
    attention_head_size, heads_per_layer, ffn_per_layer, pooler_size. Raises BadInput.
    """
    path = fetch(model, "config.json")
    try:
        c = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); download or save it again") from error
    for key, want in MUST_BE.items():
        if c.get(key, want) != want:
            raise BadInput(f"{path}: {key} is {c[key]!r}; want a model with {key} {want!r}")
    try:
        d, h, L = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
        cut = "attention_head_size" in c
        if not cut and (h < 1 or d % h):
            raise BadInput(f"{path}: hidden_size {d} is no multiple of num_attention_heads {h}")
        names = c.get("id2label") or {}
        return {
            "vocab": c["vocab_size"], "positions": c["max_position_embeddings"],
            "types": c.get("type_vocab_size", 2), "d": d,
            "k": c["attention_head_size"] if cut else d // h,
            "heads": c.get("heads_per_layer", [h] * L),
            "ffn": c.get("ffn_per_layer", [c["intermediate_size"]] * L),
            "pooler": c.get("pooler_size", d), "dropout": c.get("hidden_dropout_prob", 0.1),
            "eps": c.get("layer_norm_eps", 1e-12), "task": c.get("finetuning_task") or "",
            "labels": [names[str(i)] for i in range(len(names))] if len(names) > 1 else None}
    except KeyError as error:
        raise BadInput(f"{path}: no {error.args[0]} in it; want the config of a BERT") from error


def read_model(model):
    """A fine-tuned model: (keywords of its sizes, weights under our names). Raises BadInput.

    Where config.json tells the sizes from before pruning, as with the models that CoFi's authors
    released, they are read off the tensors; a sub-layer that is gone has left at most a LayerNorm.
    """
    path, tensors = fetch(model, "config.json"), load_tensors(model)
    c, weights = read_config(model), renamed(tensors)
    outputs = len(weights.get("classifier.weight", ()))
    if not outputs:
        raise BadInput(f"{model}: there is no classifier in it; want a fine-tuned model")
    c["span"] = "qa_outputs.weight" in tensors
    if c["span"] or outputs == 1:
        c["labels"] = None
    elif not c["labels"]:                       # the hub's libraries leave these names out
        c["labels"] = [f"LABEL_{i}" for i in range(outputs)]
    if "heads_per_layer" not in json.loads(path.read_text()):
        now = sizes_of(weights, c)
        for what in now:
            if (np.array(now[what]) > np.array(c[what])).any():
                raise BadInput(f"{path}: {what} {c[what]}, but the weights have {now[what]}; want "
                               "the weights and the config of one model")
        c |= now
    gone = [f"layers.{i}.{part}.norm." for part, sizes in (("mha", "heads"), ("ffn", "ffn"))
            for i, size in enumerate(c[sizes]) if not size] + ["pooler."] * c["span"]
    return c, {name: w for name, w in weights.items() if not name.startswith(tuple(gone))}


def sizes_of(weights, c):
    """{"d", "heads", "ffn"} read off the weights; c: with the number of layers, and k."""
    layers, d = range(len(c["heads"])), np.empty((0, c["d"]))
    return {"d": weights.get("embeddings.word.weight", d).shape[1],
            "heads": [len(weights.get(f"layers.{i}.mha.query.weight", ())) // c["k"]
                      for i in layers],
            "ffn": [len(weights.get(f"layers.{i}.ffn.up.weight", ())) for i in layers]}


def load_tensors(model):
    """{name: tensor} as they stand in pytorch_model.bin, or in model.safetensors if there is none.

    Runs no code of the file. Raises BadInput.
    """
    path = fetch(model, "pytorch_model.bin", optional=True)
    if path is None and (path := fetch(model, "model.safetensors", optional=True)) is None:
        path = fetch(model, "pytorch_model.bin")    # which says what is missing
    return read_tensors(path)


def old_to_new(name):
    for old, new in OLD_NAMES:
        name = name.replace(old, new)
    return name


def read_weights(model):
    """Every tensor of a model under our names, in single precision; no pre-training heads."""
    return renamed(load_tensors(model))


def renamed(tensors):
    ours = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^bert\.", "", old_to_new(name))
        if not re.match(NOT_OURS, name):
            for theirs, mine in [*NAMES, ("qa_outputs.", "classifier.")]:
                name = name.replace(theirs, mine)
            ours[name] = tensor.float()
    return ours


def read_mlm_head(model, device):
    """The masked-LM head of a pre-trained BERT: {"dense": (weight, bias), "norm": (weight, bias),
    "bias": (vocab)}; its last matrix is that of the word embeddings. Raises BadInput.
    """
    tensors = load_tensors(model)
    w = {old_to_new(name): tensor.float().to(device) for name, tensor in tensors.items()}
    try:
        dense, norm = ([w[f"cls.predictions.transform.{part}.{kind}"] for kind in
                        ("weight", "bias")] for part in ("dense", "LayerNorm"))
        return {"dense": dense, "norm": norm, "bias": w["cls.predictions.bias"]}
    except KeyError as error:
        raise BadInput(f"{model}: no masked-LM head in it ({error.args[0]} is absent); want "
                       "--augment 0, or a checkpoint with its pre-training heads") from error


def write_checkpoint(folder, config, weights, tokenizer):
    """Writes config.json, pytorch_model.bin and tokenizer.json to a folder: tensors and JSON only.

    config: sizes as from read_config; weights: {our name: tensor}; tokenizer: of the library.
    """
    c, theirs_of = config, {}
    for name, tensor in weights.items():
        for theirs, mine in reversed(NAMES):
            name = name.replace(mine, theirs)
        prefix = "" if name.startswith(("classifier.", "cls.")) else "bert."
        name = name.replace("classifier.", "qa_outputs.") if c["span"] else name
        theirs_of[prefix + name] = tensor.cpu().contiguous()
    kind = "QuestionAnswering" if c["span"] else "SequenceClassification"
    out = {"architectures": [f"BertFor{kind}"], **MUST_BE,
           "finetuning_task": c["task"], "vocab_size": c["vocab"],
           "max_position_embeddings": c["positions"], "type_vocab_size": c["types"],
           "hidden_size": c["d"], "num_hidden_layers": len(c["heads"]),
           "num_attention_heads": max(c["heads"]), "intermediate_size": max(c["ffn"]),
           "attention_head_size": c["k"], "heads_per_layer": c["heads"],
           "ffn_per_layer": c["ffn"], "pooler_size": c["pooler"], "layer_norm_eps": c["eps"],
           "hidden_dropout_prob": c["dropout"], "attention_probs_dropout_prob": c["dropout"]}
    if c["labels"]:
        out |= {"id2label": dict(enumerate(c["labels"])),
                "label2id": {name: i for i, name in enumerate(c["labels"])}}
    write_tensors(folder / "pytorch_model.bin", theirs_of)
    tokenizer.no_truncation()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "config.json", out)
