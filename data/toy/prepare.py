"""Make the toy world again: the pairs, the corpus, the tokenizer, and a BERT trained on the corpus.

    python data/toy/prepare.py                 all of it, about ten minutes on two cores
    python data/toy/prepare.py --only_splits   the pairs alone, some seconds

README.md beside this file describes the world. The script imports cofi.py: it trains a BERT.
"""
import csv
import functools
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
from cofi import BERT, Config                               # noqa: E402
from data.checkpoint import write_checkpoint                # noqa: E402
from data.harness.cli import Parser, check_in_range         # noqa: E402
from data.harness.console import exit_code                  # noqa: E402
from data.harness.device import has_bf16                    # noqa: E402
from data.tokenized import batches, tokenize_texts          # noqa: E402

# --------------------------------------------------------------------------------------------------
# The words, and which is under which
# --------------------------------------------------------------------------------------------------

NOUNS = {
    "animal": {"pet": "dog cat hamster canary", "predator": "wolf tiger shark eagle",
               "insect": "ant bee moth wasp"},
    "person": {"artist": "painter singer poet actor", "worker": "baker miner plumber tailor",
               "athlete": "boxer rower skier diver"},
    "machine": {"vehicle": "car bus tram truck", "robot": "android drone cyborg rover",
                "computer": "laptop tablet server phone"}}
VERBS = {
    "moves": {"runs": "sprints jogs trots dashes", "swims": "dives paddles floats wades",
              "flies": "glides soars hovers flutters"},
    "communicates": {"talks": "chats whispers mumbles argues", "sings": "hums chants croons yodels",
                     "cries": "sobs weeps wails whines"},
    "rests": {"sleeps": "naps dozes snoozes slumbers", "sits": "perches squats crouches kneels",
              "waits": "lingers loiters idles pauses"}}
ADJECTIVES = "small large old young quiet quick red blue happy sad clever lazy".split()
PLACES = [f"{preposition} the {place}" for preposition in ("near", "behind", "inside")
          for place in "garden house river forest station castle market tower barn cave".split()]
LABELS = ("entailment", "not_entailment")


class Tree:
    """A taxonomy: three roots, three words under each, four leaves under each of those.

    Of the four leaves two are `seen`, two `unseen`: no training pair replaces an unseen leaf.
    """

    def __init__(self, words):
        self.chain = {}           # word -> itself and what it is under, up to the root
        self.leaves = {"seen": [], "unseen": []}
        for root, groups in words.items():
            self.chain[root] = [root]
            for group, leaves in groups.items():
                self.chain[group] = [group, root]
                for i, leaf in enumerate(leaves.split()):
                    self.chain[leaf] = [leaf, group, root]
                    self.leaves["seen" if i < 2 else "unseen"].append(leaf)

    def depth(self, word):
        """1 for a root, 2, or 3 for a leaf."""
        return len(self.chain[word])

    def under(self, low, high):
        """Whether every low is a high; every word is under itself."""
        return high in self.chain[low]


TREES = {"noun": Tree(NOUNS), "verb": Tree(VERBS)}


class Sentence(NamedTuple):
    quantifier: str
    adjective: str            # or ""
    noun: str
    verb: str
    place: str                # or ""

    def __str__(self):
        return " ".join(word for word in self if word)


def any_of(rng, items):
    return items[rng.integers(len(items))]


# --------------------------------------------------------------------------------------------------
# The task: does the first sentence entail the second?
# --------------------------------------------------------------------------------------------------

QUANTIFIERS = [("some", "some"), ("every", "every"), ("no", "no"), ("every", "some")]


def upward(quantifier):
    """For the quantifier of a hypothesis, {slot: whether it must have the more general word}.

    This is the whole logic (monotonicity): the premise entails the hypothesis if every slot
    has the same words or has changed in its direction. Every noun phrase denotes something, so
    "every" entails "some".
    """
    noun, verb = quantifier == "some", quantifier != "no"
    return {"adjective": noun, "noun": noun, "verb": verb, "place": verb}


def twins(rng, part):
    """Two pairs (premise, hypothesis) that differ as little as can be: one entailed, one not.

    A noun, a verb or both are replaced by one above or below. In the pair that is not entailed,
    one of them is replaced sideways, by a word just as deep that is not above or below; so whoever
    knows no word by its meaning cannot tell the twins apart. In 15 % of the twins one step goes the
    wrong way instead: right words, wrong direction. That can be told from the depths alone.
    """
    quantifiers = QUANTIFIERS[rng.choice(4, p=[0.3, 0.3, 0.3, 0.1])]
    up, replaced, slots = upward(quantifiers[1]), any_of(rng, ["noun", "verb", "noun verb"]), {}
    for slot, tree in TREES.items():                        # slots: {slot: (lower, higher)}
        low = high = any_of(rng, list(tree.chain))
        if slot in replaced:
            middle = part == "seen" and rng.random() < 0.2
            low = any_of(rng, [w for w in tree.chain if tree.depth(w) == 2] if middle else
                         tree.leaves[part])
            high = any_of(rng, tree.chain[low][1:])
        slots[slot] = low, high
    for slot, words in (("adjective", ADJECTIVES), ("place", PLACES)):
        word, kind = any_of(rng, words), rng.random()
        slots[slot] = (word, "") if kind < 0.25 else (word, word) if kind < 0.5 else ("", "")

    def pair(quantifiers, slots):
        return tuple(Sentence(quantifier, **{slot: words[up[slot] == second]
                                             for slot, words in slots.items()})
                     for second, quantifier in enumerate(quantifiers))

    if rng.random() < 0.15:                                 # the wrong way
        changed = [slot for slot, (low, high) in slots.items() if low != high]
        if quantifiers == ("every", "some"):        # "every pet runs" does entail "some dog runs"
            changed = {"quantifier", "verb", "place"} & {*changed, "quantifier"}
        slot = any_of(rng, sorted(changed))
        if slot == "quantifier":
            other = pair(quantifiers[::-1], slots)
        else:
            other = pair(quantifiers, slots | {slot: slots[slot][::-1]})
    else:                                                   # sideways
        slot = any_of(rng, replaced.split())
        tree, (low, high) = TREES[slot], slots[slot]
        old = high if up[slot] else low
        words = [w for w in tree.chain if tree.depth(w) == tree.depth(old) and
                 not tree.under(w, high) and (tree.depth(w) < 3 or w in tree.leaves[part])]
        near = [w for w in words if tree.chain[w][-1] == tree.chain[old][-1]]
        new = any_of(rng, near if near and rng.random() < 0.5 else words)
        other = pair(quantifiers, slots | {slot: (low, new) if up[slot] else (new, high)})
    return pair(quantifiers, slots), other


def make_splits():
    """Return {split: [(premise, hypothesis, label, part)]}; twins are in the same split."""
    rng, known, splits = np.random.default_rng(0), set(), {}
    for split, parts in {"train": {"seen": 6000}, "validation": {"seen": 500, "unseen": 500},
                         "test": {"seen": 1000, "unseen": 1000}}.items():
        rows = []
        for part, n in parts.items():
            until = len(rows) + n
            while len(rows) < until:
                pairs = twins(rng, part)
                if not known & set(pairs):
                    known |= set(pairs)
                    rows += [(*pair, label, part) for pair, label in zip(pairs, LABELS)]
        splits[split] = [rows[i] for i in rng.permutation(len(rows))]
    return splits


# --------------------------------------------------------------------------------------------------
# Baselines that know no word: their accuracy should be near .5
# --------------------------------------------------------------------------------------------------


def shape(s):
    """What is left of a sentence when its words lose their identity."""
    depths = tuple(tree.depth(getattr(s, slot)) for slot, tree in TREES.items())
    return s.quantifier, s.adjective > "", *depths, s.place > ""


def direction(p, h):
    """Of each slot the sign of its change: the finest shape that still has many pairs a cell."""
    change = [np.sign(tree.depth(getattr(h, slot)) - tree.depth(getattr(p, slot)))
              for slot, tree in TREES.items()]
    return (p.quantifier, h.quantifier, *change, (h.adjective > "") - (p.adjective > ""),
            (h.place > "") - (p.place > ""))


BASELINES = {             # what the vote sees of a premise p and a hypothesis h
    "hypothesis: shape": lambda p, h: shape(h),
    "hypothesis: shape and noun": lambda p, h: (shape(h), h.noun),
    "hypothesis: shape and verb": lambda p, h: (shape(h), h.verb),
    "premise: shape": lambda p, h: shape(p),
    "both: shapes and overlap": lambda p, h: (shape(p), shape(h), *map(str.__eq__, p, h)),
    "both: lengths and overlap": lambda p, h: (len(str(p).split()), len(str(h).split()),
                                               len(set(str(p).split()) & set(str(h).split()))),
    "both: direction of each change": direction,
}


def majority(splits, key, split):
    """Accuracy on a split of the majority vote, by training pairs that look alike under key."""
    votes = {}
    for p, h, label, _ in splits["train"]:
        cell = votes.setdefault(key(p, h), [0, 0])
        cell[LABELS.index(label)] += 1
    hits = [LABELS[int(np.argmax(votes.get(key(p, h), [1, 0])))] == label
            for p, h, label, _ in splits[split]]
    return float(np.mean(hits))


# --------------------------------------------------------------------------------------------------
# The corpus: texts without labels, in which the taxonomy connects the sentences
# --------------------------------------------------------------------------------------------------


def narrative(rng):
    """Two sentences about one being and what it does; the second may use more general words.

    As in English: "A tall poet sang ... The artist ..." and never the other way round.
    """
    words = {"first": {}, "then": {}}
    for slot, tree in TREES.items():
        chain = tree.chain[any_of(rng, tree.leaves["seen"] + tree.leaves["unseen"])]
        for which, i in zip(words, sorted(rng.integers(3, size=2))):
            words[which][slot] = chain[i]
    quantifier = any_of(rng, ["a", "every", "some", "no"])
    adjective, place = (any_of(rng, some) if rng.random() < 0.5 else ""
                        for some in (ADJECTIVES, PLACES))
    first = Sentence(quantifier, adjective, place=place, **words["first"])
    then = Sentence("the" if quantifier == "a" else quantifier, any_of(rng, [adjective, ""]),
                    place=any_of(rng, [place, ""]), **words["then"])
    return first, then


def fact(rng):
    """One sentence about what the words mean."""
    slot = any_of(rng, ["noun", "verb"])
    chain = TREES[slot].chain
    low = any_of(rng, [word for word in chain if len(chain[word]) > 1])
    high = any_of(rng, chain[low][1:])
    if slot == "verb":
        return f"whoever {low} {high}"
    other = any_of(rng, [w for w in chain if w not in chain[low] and low not in chain[w]])
    return any_of(rng, [f"every {low} is a {high}", f"some {high} is a {low}",
                        f"no {low} is a {other}"])


def make_corpus(n, splits):
    """Write n documents of two sentences: four of five a narrative, the others two facts.

    No narrative is a pair of the task. Returns (sentences: two lists of n strings, order (n) int64:
    1 in order, 0 swapped, NO_ORDER for facts and for the same sentence twice). The order objective
    is that of Lan et al. 2020 (ALBERT): half of the documents are swapped.
    """
    rng, documents, order = np.random.default_rng(1), [], []
    pairs = {frozenset(pair[:2]) for rows in splits.values() for pair in rows}
    while len(documents) < n:
        document, in_order = narrative(rng), int(rng.integers(2))
        if rng.random() < 0.2:
            documents.append((fact(rng), fact(rng)))
            order.append(NO_ORDER)
        elif frozenset(document) not in pairs:
            documents.append(tuple(map(str, document if in_order else document[::-1])))
            order.append(in_order if document[0] != document[1] else NO_ORDER)
    return list(zip(*documents)), np.array(order)


def held_out(n, documents, splits):
    """Return n more documents of the corpus, [(sentence, sentence)], that are not among the first.
    """
    sentences, _ = make_corpus(documents + 2 * n, splits)
    pairs = list(zip(*sentences))
    seen = set(pairs[:documents])
    return [pair for pair in pairs[documents:] if pair not in seen][:n]


# --------------------------------------------------------------------------------------------------
# The model: masked words and sentence order
# --------------------------------------------------------------------------------------------------

NO_ORDER = -100           # cross_entropy leaves it out
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer():
    """BERT's own kind of tokenizer; every word of the world is one token."""
    words = [*(word for tree in TREES.values() for word in tree.chain), *ADJECTIVES,
             *" ".join(PLACES).split(), *"a the every some no is whoever".split()]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(SPECIAL + words))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def corrupt(input_ids, attention_mask, vocab_size):
    """Masking as BERT's: 20 % of the words are to be predicted (BERT: 15 %).

    Of those 60 % become [MASK], 25 % another word, 15 % stay (BERT: 80, 10, 10). More other words
    mean more practice in noticing that a word does not fit. Returns (input_ids, chosen): (B, T).
    """
    is_word = attention_mask & (input_ids >= len(SPECIAL))
    chosen = is_word & (torch.rand(input_ids.shape) < 0.2)
    kind = torch.rand(input_ids.shape)
    masked = torch.where(chosen & (kind < 0.6), SPECIAL.index("[MASK]"), input_ids)
    other = torch.randint(len(SPECIAL), vocab_size, input_ids.shape)
    return torch.where(chosen & (kind > 0.75), other, masked), chosen


def pretrain(tokenizer, corpus, steps, batch_size=128, lr=1e-3):
    """Train a BERT on a corpus of make_corpus, with the two objectives above.

    Returns (Config, {our name: weight}); the weights of the two heads have BERT's names.
    """
    torch.manual_seed(0)
    vocab_size, d = tokenizer.get_vocab_size(), 128
    config = Config(vocab_size, max_position_embeddings=64, type_vocab_size=2, hidden_size=d,
                    attention_head_size=16, heads_per_layer=[8] * 4, ffn_per_layer=[4 * d] * 4,
                    pooler_size=d, id2label=["swapped", "in order"])
    bert = BERT(config)
    head = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.LayerNorm(d, config.layer_norm_eps))
    bias = nn.Parameter(torch.zeros(vocab_size))
    weights = [*bert.parameters(), *head.parameters(), bias]
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, max(steps, 1), pct_start=0.06, anneal_strategy="linear",
        cycle_momentum=False)                               # up for 6 % of the steps, then down
    dataset = tokenize_texts(*corpus, tokenizer, config.max_position_embeddings)
    bf16, log_every = has_bf16(torch.device("cpu")), max(steps // 20, 1)
    loss_sums, start_time = 0, time.time()
    epochs = (batches(dataset, batch_size, (0, epoch)) for epoch in range(10**6))
    stream = (batch for epoch in epochs for _, batch in epoch)
    for step, batch in zip(tqdm(range(1, steps + 1), disable=None), stream):
        labels, original = batch.pop("labels"), batch["input_ids"]
        batch["input_ids"], chosen = corrupt(original, batch["attention_mask"], vocab_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = bert(**batch)
            H = head(out.hidden_states[-1][chosen])
            words = F.linear(H, bert.embeddings.word.weight, bias)
        losses = torch.stack([F.cross_entropy(words.float(), original[chosen]),
                              F.cross_entropy(out.logits.float(), labels)])
        optimizer.zero_grad()
        (losses @ torch.tensor([1.0, 0.5])).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        loss_sums = loss_sums + losses.detach()
        if step % log_every == 0:
            words_loss, order_loss = loss_sums / log_every
            tqdm.write(f"step {step:6}   masked words {words_loss:.4f}   order {order_loss:.4f}   "
                       f"{time.time() - start_time:.0f} s")
            loss_sums = 0
    mlm = {"transform.dense": head[0], "transform.LayerNorm": head[2]}
    mlm = {f"cls.predictions.{name}.{kind}": getattr(module, kind).data
           for name, module in mlm.items() for kind in ("weight", "bias")}
    own = {name.replace("classifier", "cls.seq_relationship"): w
           for name, w in bert.state_dict().items()}
    return replace(config, id2label=None), own | mlm | {"cls.predictions.bias": bias.data}


def main(arguments=None):
    """Run the command line. Returns the exit code: 0, 2 for unusable input, 130 if interrupted."""
    return exit_code("prepare", functools.partial(prepare, arguments))


def prepare(arguments):
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only_splits", action="store_true", help="no pre-training")
    parser.add_argument("--out", type=Path, default=HERE, help="folder [default: this one]")
    parser.add_argument("--documents", type=int, default=60_000, help="of the corpus")
    parser.add_argument("--steps", type=int, default=8000, help="of training; 0: an untrained BERT")
    args = parser.parse_args(arguments)
    check_in_range("documents", args.documents, 1, 10**7)
    check_in_range("steps", args.steps, 0, 10**7)
    args.out.mkdir(parents=True, exist_ok=True)
    splits = make_splits()
    for split, rows in splits.items():
        with (args.out / f"{split}.tsv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(["sentence1", "sentence2", "label", "part"])
            writer.writerows([str(p), str(h), label, part] for p, h, label, part in rows)
    with (args.out / "heldout.tsv").open("w", encoding="utf-8") as file:
        file.writelines("\t".join(pair) + "\n"
                        for pair in held_out(1000, args.documents, splits))
    for name, key in BASELINES.items():
        print(f"{name:32}" + "".join(f"   {split} {majority(splits, key, split):.3f}"
                                     for split in ("validation", "test")))
    if not args.only_splits:
        tokenizer = make_tokenizer()
        corpus = make_corpus(args.documents, splits)
        config, weights = pretrain(tokenizer, corpus, args.steps)
        weights = {name: w.half() for name, w in weights.items()}
        write_checkpoint(args.out, asdict(config), weights, tokenizer)


if __name__ == "__main__":
    sys.exit(main())
