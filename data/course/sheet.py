"""The questions of the course: a text and an answer, with numbers of each student's own.

The copy for an assignment holds the texts in ASSIGNMENT.md, and of the answers only the digests.
"""
import math
import random

import torch

import cofi
import sparsebert

M = 84_934_656          # weights of BERT-base's encoder


def keep_prob(log_alpha):
    return cofi.keep_prob(torch.tensor(log_alpha, dtype=torch.double)).item()


def sheet(seed):
    """Return {question: (text, answer)} for a student. seed: a name, or any other text."""
    rng = random.Random(f"sheet of {seed}")
    a, start = rng.choice([-1.5, -1.0, -0.5, 0.5, 1.0, 1.5]), rng.choice([-0.5, 0.0, 0.5, 1.0])
    p = rng.choice([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    floor, f = rng.choice([0.01, 0.02, 0.05]), rng.choice([1536, 3072, 4096])
    B, T, h = rng.choice([8, 16, 32]), rng.choice([64, 128, 384]), rng.choice([8, 12, 16])
    d, k, heads = rng.choice([384, 512, 1024]), rng.choice([32, 64, 128]), rng.randint(2, 9)
    tau, x = rng.choice([2, 3, 4]), rng.choice([2, 3, 5])
    n, L = rng.choice([3, 4, 5]), rng.choice([10, 12, 16, 24])
    left, kept_d = rng.randint(8, 20), rng.choice([700, 720, 740, 760])
    faster = rng.choice([10.5, 11.2, 12.1, 13.4])
    s, t = rng.choice([0.9, 0.93, 0.95, 0.97]), rng.choice([0.2, 0.3, 0.4, 0.6])
    teacher = torch.tensor([x / tau, 0.0], dtype=torch.double).softmax(0).tolist()
    kl = sum(q * math.log(2 * q) for q in teacher)
    share = (1 / faster - 1 / 20) / (1 - 1 / 20)
    return {
        "1a": (f"How often is a mask with log_alpha = {a:g} neither 0 nor 1? As a fraction. Hint: "
               "by symmetry P(z < 1) is P(z > 0) at -log_alpha.", keep_prob(a) + keep_prob(-a) - 1),
        "1b": (f"At which log_alpha is a mask open with probability {p:g}?",
               2 / 3 * math.log(0.1 / 1.1) + math.log(p / (1 - p))),
        "1c": (f"The authors' code never lets log_alpha fall below log {floor:g} (natural "
               f"logarithm). All {f:,} units of an FFN are at this value. How many of them does "
               "P(z > 0) still expect to be open (not rounded)?", f * keep_prob(math.log(floor))),
        "2a": (f"How many attention scores does one layer with {h} heads compute for {B} examples "
               f"of {T} tokens?", B * h * T * T),
        "2b": (f"In a layer with hidden size {d} (all heads together are as wide) and {4 * d:,} "
               "FFN units, the scores of a token and the sums that they weight cost 2 T d "
               "multiply-adds. At which T is that as much as the layer's matrices cost for the "
               "token?", (4 * d * d + 2 * d * 4 * d) / (2 * d)),
        "3a": (f"How many weights does one head of size {k} have at hidden size {d}, biases not "
               "counted?", 4 * k * d),
        "3b": (f"How many FFN units have as many weights as {heads} heads of size {k}?",
               heads * 2 * k),
        "3c": (f"Suppose that the masks of FFN units start at log_alpha = {start:g}, and all other "
               "masks are open for certain. FFNs are two thirds of BERT-base. Which sparsity, as a "
               "fraction, does `Masks.sparsity` report before anything is pruned?",
               2 / 3 * (1 - keep_prob(start))),
        "4a": (f"What is L_pred at temperature {tau}, if the teacher's logits are ({x}, 0) and the "
               "student's are (0, 0)?", tau**2 * kl),
        "4b": (f"{n} teacher layers are matched to {L} student layers in order: a higher teacher "
               "layer gets a higher student layer. In how many ways is that possible?",
               math.comb(L, n)),
        "5a": (f"BERT-base ({M:,} weights, heads of size 64) is pruned to {s:.0%} sparsity; {left} "
               f"heads in all and {kept_d} hidden dimensions are left. How many FFN units fit into "
               "the budget at most?", ((1 - s) * M + 1e-6 - left * 4 * 64 * kept_d)
               // (2 * kept_d)),
        "5b": (f"A model with a twentieth of BERT's weights is {faster:g} times as fast. Suppose "
               "that a share of BERT's time does not shrink at all, and that the rest shrinks 20 "
               "times. How large is this share, as a fraction?", share),
        "5c": ("How many times as fast would the model of 5b be if the share were half as large?",
               1 / (share / 2 + (1 - share / 2) / 20)),
        "6a": (f"How many weights of a matrix of {d} x {4 * d:,} are left at {s:.0%} sparsity?",
               sparsebert.num_kept(4 * d * d, s)),
        "6b": ("A file holds one bit for every position of a matrix, and four bytes for every "
               f"weight that is left. How many times smaller is it at {s:.0%} sparsity than a file "
               "with four bytes for every position?", 32 / (1 + 32 * (1 - s))),
        "6c": (f"Which share of the final sparsity is reached when {t:.0%} of the pruning is over? "
               "As a fraction.", sparsebert.cubic_sparsity(t, 1.0))}
