"""A model on disk: config.json and pytorch_model.bin, named as in every BERT checkpoint."""
import json
import re

import torch

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
        names = c.get("id2label")
        return {
            "vocab": c["vocab_size"], "positions": c["max_position_embeddings"],
            "types": c.get("type_vocab_size", 2), "d": d,
            "k": c["attention_head_size"] if cut else d // h,
            "heads": c.get("heads_per_layer", [h] * L),
            "ffn": c.get("ffn_per_layer", [c["intermediate_size"]] * L),
            "pooler": c.get("pooler_size", d), "dropout": c.get("hidden_dropout_prob", 0.1),
            "eps": c.get("layer_norm_eps", 1e-12), "task": c.get("finetuning_task") or "",
            "labels": [names[str(i)] for i in range(len(names))] if names else None}
    except KeyError as error:
        raise BadInput(f"{path}: no {error.args[0]} in it; want the config of a BERT") from error


def load_tensors(model):
    """{name: tensor} as they stand in pytorch_model.bin. Runs no code of the file."""
    path = fetch(model, "pytorch_model.bin")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, no checkpoint, or carrying code
        raise BadInput(f"{path}: not a file of tensors alone ({type(error).__name__}); "
                       "download or save it again") from error


def old_to_new(name):
    for old, new in OLD_NAMES:
        name = name.replace(old, new)
    return name


def read_weights(model):
    """Every tensor of a model under our names, in single precision; no pre-training heads."""
    ours = {}
    for name, tensor in load_tensors(model).items():
        name = re.sub(r"^bert\.", "", old_to_new(name))
        if not re.match(NOT_OURS, name):
            for theirs, mine in NAMES:
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
        theirs_of[prefix + name] = tensor.cpu().contiguous()
    out = {"architectures": ["BertForSequenceClassification"], **MUST_BE,
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
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(theirs_of, folder / "pytorch_model.bin")
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(out, indent=2) + "\n")
