"""The toy world: its labels, its splits, and the script that made it."""
import functools
import itertools
import json
from dataclasses import asdict

import torch

from data.checkpoint import write_checkpoint
from data.tasks import TOY
from data.toy import prepare


def read_toy(split):
    """Return [(premise, hypothesis, label, part)] of a file, the texts as Sentences of prepare.py.
    """
    rows = []
    for line in (TOY / f"{split}.tsv").read_text("utf-8").splitlines()[1:]:
        *pair, label, part = line.split("\t")
        for i, words in enumerate(text.split() for text in pair):
            adjective = words.pop(1) if words[1] in prepare.ADJECTIVES else ""
            pair[i] = prepare.Sentence(words[0], adjective, words[1], words[2],
                                       " ".join(words[3:]))
        rows.append((*pair, label, part))
    return rows


@functools.cache
def truth_values(tree, low, high, extra, extra2):
    """Return which truth values two phrases can have of one thing: {(is it low?, is it high?)}.

    A thing is one leaf; its extra (adjective or place) is any of the two, or both, or neither.
    """
    chains = prepare.TREES[tree].chain
    leaves = [leaf for leaf, chain in chains.items() if len(chain) == 3]
    return {tuple(word in chains[leaf] and (not x or x in has)
                  for word, x in ((low, extra), (high, extra2)))
            for leaf in leaves for has in ((), (extra,), (extra2,), (extra, extra2))}


@functools.cache
def has_counterexample(quantifiers, nouns, verbs):
    """Whether a world of up to four beings makes the premise true and the hypothesis false.

    nouns, verbs: from truth_values. A being may do several things. All phrases denote something.
    """
    done = {(False, False)} | verbs
    done |= {(a or c, b or d) for a, b in done for c, d in done}
    beings = [(*noun, *verb) for noun in nouns for verb in done]

    def holds(quantifier, world, i):
        does_it = [being[2 + i] for being in world if being[i]]
        return {"some": any, "every": all, "no": lambda x: not any(x)}[quantifier](does_it)

    return any(holds(quantifiers[0], world, 0) and not holds(quantifiers[1], world, 1)
               for n in range(1, 5) for world in itertools.combinations(beings, n)
               if any(b[0] for b in world) and any(b[1] for b in world))


def test_toy_labels_have_no_counterexample():
    """Entailed is what no world refutes: no rule about directions, only what the words mean."""
    for split in ("train", "validation", "test"):
        for p, h, label, _ in read_toy(split):
            nouns = truth_values("noun", p.noun, h.noun, p.adjective, h.adjective)
            verbs = truth_values("verb", p.verb, h.verb, p.place, h.place)
            is_refuted = has_counterexample((p.quantifier, h.quantifier), frozenset(nouns),
                                            frozenset(verbs))
            assert is_refuted == (label == "not_entailment"), (str(p), str(h), label)


def test_toy_splits():
    """Balanced, disjoint, seen and unseen words apart; no vote succeeds without knowing words."""
    splits = {split: read_toy(split) for split in ("train", "validation", "test")}
    pairs = [pair[:2] for rows in splits.values() for pair in rows]
    assert len(set(pairs)) == len(pairs)
    for split, rows in splits.items():
        for part in {row[3] for row in rows}:
            labels = [row[2] for row in rows if row[3] == part]
            assert labels.count("entailment") * 2 == len(labels)
    assert {part for *_, part in splits["train"]} == {"seen"}
    for p, h, _, part in itertools.chain.from_iterable(splits.values()):
        for slot, tree in prepare.TREES.items():
            words = {getattr(p, slot), getattr(h, slot)}
            if len(words) == 2:         # a leaf that is replaced, or that replaces, is of its part
                other = tree.leaves["unseen" if part == "seen" else "seen"]
                assert not words & set(other)
    for name, key in prepare.BASELINES.items():
        best = max(prepare.majority(splits, key, split) for split in ("validation", "test"))
        assert best < 0.6, name


def test_toy_is_what_prepare_makes(tmp_path):
    """The splits byte for byte, the tokenizer, and a model that has kept its masked-LM head."""
    assert prepare.main(["--only_splits", "--out", str(tmp_path)]) == 0
    for split in ("train", "validation", "test"):
        shipped = (TOY / f"{split}.tsv").read_bytes()
        assert (tmp_path / f"{split}.tsv").read_bytes() == shipped
    made = prepare.make_tokenizer().to_str()
    assert json.loads(made) == json.loads((TOY / "tokenizer.json").read_text("utf-8"))
    weights = torch.load(TOY / "pytorch_model.bin", weights_only=True)
    assert "cls.predictions.bias" in weights
    assert sum(path.stat().st_size for path in TOY.iterdir() if path.is_file()) < 6e6


def test_prepare_trains_a_model(tmp_path):
    """Two steps of pre-training give the weights of the shipped model, by name."""
    torch.manual_seed(0)
    tokenizer = prepare.make_tokenizer()
    corpus = prepare.make_corpus(40, {})
    config, weights = prepare.pretrain(tokenizer, corpus, steps=2, batch_size=8)
    assert config.id2label is None and config.heads_per_layer == [8] * 4
    shipped = torch.load(TOY / "pytorch_model.bin", weights_only=True)
    write_checkpoint(tmp_path, asdict(config), weights, tokenizer)
    written = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert {name: w.shape for name, w in written.items()} == {
        name: w.shape for name, w in shipped.items()}
