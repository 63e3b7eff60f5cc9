"""Models on disk: config.json and pytorch_model.bin, with the names of every BERT checkpoint."""
import re

import numpy as np
import torch

from data.errors import UserError
from data.files import file_digest, read_json, read_tensors, write_json, write_tensors, write_text
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
                   "position_embedding_type": "absolute", "is_decoder": False}
FINETUNED = ("SequenceClassification", "QuestionAnswering")     # ends of architectures
SAME_MODEL = "Try the weights and the config of one model"
# {size in config.json: highest value}; beyond it, it is a mistake, not a BERT
SIZES = {"vocab_size": 5_000_000, "max_position_embeddings": 100_000, "type_vocab_size": 1000,
         "hidden_size": 20_000, "num_attention_heads": 1000, "num_hidden_layers": 200,
         "intermediate_size": 100_000, "attention_head_size": 20_000, "pooler_size": 20_000}


# ---- config.json ---------------------------------------------------------------------------------


def check_number(path, key, value, low, high, kind=int):
    """Return a number of config.json. Raises UserError if it is none, or out of its range."""
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        name = "a whole number" if kind is int else "a number"
        raise UserError(f"{path}: {key} must be {name} from {low} to {high}, got "
                        f"{str(value)[:40]!r}. Try the config of a BERT")
    return value


def read_sizes(path, c, key, default):
    """Return a size for each layer, of a pruned model in config.json, else the default."""
    sizes = c.get(key, default)
    if not isinstance(sizes, list) or len(sizes) != len(default):
        raise UserError(f"{path}: {key} must be a list of {len(default)} numbers, one for each "
                        f"layer, got {str(sizes)[:40]!r}. Try to save the model again")
    return [check_number(path, key, size, 0, SIZES["intermediate_size"]) for size in sizes]


def read_class_names(path, c):
    """Return id2label of config.json as a list, or None if it names no classes."""
    names = c.get("id2label") or {}
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    is_valid = isinstance(names, dict) and names.keys() == {str(i) for i in range(len(names))}
    if not is_valid or not all(isinstance(name, (str, int)) for name in names.values()):
        raise UserError(f"{path}: id2label must give a name to each of the classes 0, 1, ..., got "
                        f"{str(names)[:60]}. Try the config of a BERT")
    names = [str(names[str(i)]) for i in range(len(names))]
    return names if len(names) > 1 else None


def read_config(model):
    """Read config.json of a model (a folder or a hub name) as keywords of cofi.Config.

    Besides the keys of every BERT it reads those that write_checkpoint adds for a pruned model:
    attention_head_size, heads_per_layer, ffn_per_layer, pooler_size. Raises UserError.
    """
    path = fetch(model, "config.json")
    c = read_json(path)
    for key, required in REQUIRED_CONFIG.items():
        if c.get(key, required) not in (required, None):
            raise UserError(f"{path}: {key} must be {required!r}, got {c[key]!r}. Try another "
                            "model")

    def size(key, default=None):
        if key not in c and default is None:
            raise UserError(f"{path}: {key} is missing. Try the config of a BERT")
        low = 8 if key == "max_position_embeddings" else 1
        if key in ("num_attention_heads", "intermediate_size") and "heads_per_layer" in c:
            low = 0                     # of a pruned model, heads and FFN units may all be gone
        return check_number(path, key, c.get(key, default), low, SIZES[key])

    d, h, L = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
    if "attention_head_size" not in c and (h < 1 or d % h):
        raise UserError(f"{path}: hidden_size must be a multiple of num_attention_heads, got "
                        f"{d} and {h}. Try the config of a BERT")
    return {
        "vocab_size": size("vocab_size"),
        "max_position_embeddings": size("max_position_embeddings"),
        "type_vocab_size": size("type_vocab_size", 2),
        "hidden_size": d,
        "attention_head_size": size("attention_head_size", d // max(h, 1)),
        "heads_per_layer": read_sizes(path, c, "heads_per_layer", [h] * L),
        "ffn_per_layer": read_sizes(path, c, "ffn_per_layer", [size("intermediate_size")] * L),
        "pooler_size": size("pooler_size", d),
        "dropout": check_number(path, "hidden_dropout_prob", c.get("hidden_dropout_prob", 0.1),
                                0, 0.99, float),
        "layer_norm_eps": check_number(path, "layer_norm_eps", c.get("layer_norm_eps", 1e-12),
                                       0, 1, float),
        "id2label": read_class_names(path, c),
        "task": str(c.get("finetuning_task") or "")}


# ---- Weights -------------------------------------------------------------------------------------


def weights_path(model):
    """Return the file of a model's weights: model.safetensors, as every library prefers, or
    pytorch_model.bin. Raises UserError.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = fetch(model, name, optional=True)
        if path:
            return path
        if fetch(model, f"{name}.index.json", optional=True):
            raise UserError(f"{model}: its weights are in several files. Try to save it as one, "
                            "with max_shard_size='10GB'")
    return fetch(model, "pytorch_model.bin")            # raises: it says what is missing


def load_tensors(model):
    """Return {name: tensor} of a model's weights. Runs no code of the file.

    Raises UserError for anything but dense, finite tensors, and if the file is not what the run
    that wrote it has noted in result.json.
    """
    path = weights_path(model)
    note = path.with_name("result.json")
    written = read_json(note).get("sha256") if note.is_file() else None
    if written and written != file_digest(path):
        raise UserError(f"{path} has changed since it was written (its hash is not the one in "
                        "result.json). Try to copy it again, or delete result.json")
    tensors = read_tensors(path)
    remedy = "Try to save model.state_dict()"
    inner = [key for key in ("model_state_dict", "state_dict", "model") if isinstance(tensors, dict)
             and isinstance(tensors.get(key), dict)]
    if inner:
        remedy = f"Try to save its {inner[0]!r} alone"
    if not isinstance(tensors, dict):
        raise UserError(f"{path} must hold tensors by name, got a {type(tensors).__name__}. "
                        f"{remedy}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path} must hold tensors by name, got a {type(tensor).__name__} "
                            f"named {name!r}. {remedy}")
        if (tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()
                or tensor.is_meta):
            raise UserError(f"{path}: {name} must be a dense tensor of real numbers, got "
                            f"{tensor.layout}, {tensor.dtype}, {tensor.device}. {remedy}")
        if not tensor.float().isfinite().all():
            raise UserError(f"{path}: {name} must be finite, got NaN or infinity. Its training "
                            "has failed. Try an earlier checkpoint")
    return tensors


def tf_to_hf(name):
    for old, new in TF_TO_HF:
        name = name.replace(old, new)
    return name


def rename_keys(tensors, model):
    """Return the tensors under our names and in fp32, without the pre-training heads."""
    ours = {}
    for name, tensor in tensors.items():
        # prefixes of DataParallel, of a wrapper, and of torch.compile
        name = re.sub(r"^((module|model|_orig_mod)\.)*(bert\.)?", "", tf_to_hf(name))
        if re.match(IGNORED_KEYS, name):
            continue
        for theirs, mine in [*HF_TO_OURS, ("qa_outputs.", "classifier.")]:
            name = name.replace(theirs, mine)
        if name in ours or not tensor.is_floating_point():
            got = "two tensors" if name in ours else str(tensor.dtype)
            raise UserError(f"{model}: {name} must be one tensor of floating-point numbers, got "
                            f"{got}. Try to save the model again in fp32")
        ours[name] = tensor.float()
    if "embeddings.word.weight" in ours and not ours["embeddings.word.weight"].any():
        raise UserError(f"{model}: embeddings.word.weight must not be all zeros. Try another copy "
                        "of the model")
    return ours


def read_weights(model):
    """Return {our name: fp32 tensor} of a pre-trained model. Raises UserError."""
    return rename_keys(load_tensors(model), model)


def read_finetuned(model):
    """Read a fine-tuned model: (keywords of cofi.Config, {our name: tensor}). Raises UserError.

    Where config.json still holds the sizes from before pruning, as in the checkpoints that CoFi's
    authors released, the sizes are read off the tensors. A removed sub-layer may have left its
    LayerNorm behind.
    """
    path = fetch(model, "config.json")
    config = read_config(model)
    tensors = load_tensors(model)
    weights = rename_keys(tensors, model)
    on_disk = read_json(path)
    check_head(path, on_disk)
    for name in ("classifier.weight", "embeddings.word.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise UserError(f"{model}: there is no {name} in it, or not as a matrix. Try a "
                            "fine-tuned model")
    outputs = len(weights["classifier.weight"])
    config["is_span"] = any(name.endswith("qa_outputs.weight") for name in tensors)
    if config["is_span"] or outputs == 1:
        config["id2label"] = None
    elif not config["id2label"]:                # transformers leaves default names out
        config["id2label"] = [f"LABEL_{i}" for i in range(outputs)]
    elif len(config["id2label"]) != outputs:
        raise UserError(f"{path}: id2label must name {outputs} classes, one for each output of the "
                        f"classifier, got {len(config['id2label'])}. {SAME_MODEL}")
    if "heads_per_layer" not in on_disk:
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


def check_head(path, c):
    """Raise UserError for a fine-tuned model that is no classifier of whole texts or spans."""
    for architecture in c.get("architectures") or []:
        if not str(architecture).endswith(FINETUNED):
            raise UserError(f"{path}: architectures must end in {' or '.join(FINETUNED)}, got "
                            f"{architecture}. Try a model that was fine-tuned on whole texts")
    if c.get("problem_type") == "multi_label_classification":
        raise UserError(f"{path}: problem_type must be single_label_classification or regression, "
                        "got multi_label_classification. Try another model")


def infer_sizes(weights, config):
    """Read hidden_size, heads_per_layer and ffn_per_layer off the weights."""
    layers = range(len(config["heads_per_layer"]))
    word = weights.get("embeddings.word.weight", np.empty((0, config["hidden_size"])))
    queries = [len(weights.get(f"layers.{i}.mha.query.weight", ())) for i in layers]
    return {"hidden_size": word.shape[1],
            "heads_per_layer": [rows // config["attention_head_size"] for rows in queries],
            "ffn_per_layer": [len(weights.get(f"layers.{i}.ffn.up.weight", ())) for i in layers]}


def check_shapes(expected, weights, model):
    """Raise UserError unless two dicts have the same names and shapes. model: for the error."""
    for name in sorted(expected.keys() | weights.keys()):
        got, needed = (tuple(w[name].shape) if name in w else "absent" for w in (weights, expected))
        if got != needed:
            raise UserError(f"{model}: {name} is {got} in its weights, but {needed} by "
                            f"config.json. {SAME_MODEL}")


def load_weights(make, config, weights, model):
    """Return make(config), a network, with these weights. Raises UserError unless they fit.

    model: the name of the model, for the error.
    """
    with torch.device("meta"):          # nothing is allocated before all shapes are compared
        bert = make(config)
    check_shapes(bert.state_dict(), weights, model)
    bert.load_state_dict(weights, assign=True)
    return bert


def load_encoder(make, config, model):
    """Return make(config), a network, with a pre-trained encoder, and notes for the user.

    The classifier stays as it was initialized. So does the pooler if the model has none, or one
    that was never trained (all biases 0). Raises UserError as load_weights.
    """
    weights = read_weights(model)
    notes, new_parts = [], ["classifier"]
    if "classifier.weight" in weights:
        notes.append(f"{model}: its classifier is replaced by a new one for this task")
    if config.is_span:                  # a span head reads the tokens; there is no pooler
        new_parts.append("pooler")
    elif "pooler.bias" not in weights:
        new_parts.append("pooler")
        notes.append(f"{model}: pooler is absent, initializing a new one")
    elif not weights["pooler.bias"].any():
        new_parts.append("pooler")
        notes.append(f"{model}: pooler was never trained, initializing a new one")

    def without_new(state):
        return {name: w for name, w in state.items() if name.split(".")[0] not in new_parts}

    weights = without_new(weights)
    with torch.device("meta"):
        check_shapes(without_new(make(config).state_dict()), weights, model)
    bert = make(config)
    bert.load_state_dict(weights, strict=False)
    return bert, notes


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
        own, needed = (
            "spans" if span else f"classes {classes}" if classes else "a value (regression)"
            for classes, span in ((bert.config.id2label, bert.config.is_span), (names, is_span)))
        raise UserError(f"{model}: it predicts {own}, the task asks for {needed}. Try a model of "
                        "this task; its config.json must name its classes, in order, as id2label")
    if needed:
        order = [own.index(name) for name in needed]
        for p in bert.classifier.parameters():
            p.copy_(p[order])
        bert.config.id2label = list(names)


def read_mlm_head(model, device):
    """Read the masked-LM head of a pre-trained BERT. Its last matrix is the word embeddings.

    Returns {"dense": (weight, bias), "norm": (weight, bias), "words": (vocab, d), "bias": (vocab)}.
    Raises UserError.
    """
    tensors = load_tensors(model)
    head = {tf_to_hf(name): tensor.float() for name, tensor in tensors.items() if "cls." in name}

    def read(name):
        return head[f"cls.predictions.{name}"].to(device)

    try:
        return {"dense": (read("transform.dense.weight"), read("transform.dense.bias")),
                "norm": (read("transform.LayerNorm.weight"), read("transform.LayerNorm.bias")),
                "words": rename_keys(tensors, model)["embeddings.word.weight"].to(device),
                "bias": read("bias")}
    except KeyError as error:
        raise UserError(f"{model}: there is no masked-LM head in it ({error.args[0]} is missing). "
                        "Try --augment 0, or a checkpoint with its pre-training heads") from error


# ---- Writing -------------------------------------------------------------------------------------


def write_checkpoint(folder, config, weights, tokenizer):
    """Write config.json, pytorch_model.bin and tokenizer.json: tensors and JSON only.

    config: the fields of a cofi.Config, as a dict; weights: {our name: tensor}. Returns the path of
    the weights.
    """
    tensors = {}
    for name, tensor in weights.items():
        for theirs, mine in reversed(HF_TO_OURS):
            name = name.replace(mine, theirs)
        prefix = "" if name.startswith(("classifier.", "cls.")) else "bert."
        if config["is_span"]:
            name = name.replace("classifier.", "qa_outputs.")
        tensors[prefix + name] = tensor.cpu().contiguous()
    path = folder / "pytorch_model.bin"
    write_tensors(path, tensors)
    tokenizer.no_truncation()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(folder / "config.json", config_on_disk(config))
    return path


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
