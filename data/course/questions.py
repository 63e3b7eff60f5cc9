"""The questions of the course: their answers, and how an answer is checked.

    python test_cofi.py --answer 3b 12.5

The copy for an assignment holds the digests alone: its answers() is still to be written.
"""
import hashlib
import math

import torch

import cofi
import sparsebert
from data.errors import UserError

DIGESTS = {                   # of the answers, so that they can be checked but not read
    "1a": "25072c96", "1b": "2bca10a3", "1c": "4167cb8e", "2a": "45deb5bf",
    "2b": "4694556c", "3a": "2db99fbd", "3b": "452575d2", "3c": "4bb91a01",
    "4a": "aefffd81", "4b": "5d43c9c2", "5a": "f62655df", "5b": "fabac012",
    "5c": "9fb4ab29", "6a": "36719e27", "6b": "551e08fa", "6c": "fbb52822"}


def answers():
    """Return {question: number}."""
    p_0, p_min = cofi.keep_prob(torch.tensor([0.0, math.log(0.01)])).tolist()
    d, head, unit = 768, 4 * 64 * 768, 2 * 768          # weights of a head, of an FFN unit
    teacher = torch.tensor([1.0, 0.0]).softmax(0).tolist()          # logits 2, 0 at temperature 2
    kl = sum(q * math.log(2 * q) for q in teacher)
    budget = 0.05 * 84_934_656
    return {
        "1a": 2 * p_0 - 1, "1b": 2 / 3 * math.log(0.1 / 1.1), "1c": 3072 * p_min,
        "2a": 32 * 12 * 128 * 128, "2b": (12 * head + 3072 * unit) / (2 * d),
        "3a": head, "3b": head / unit, "3c": 2 / 3 * (1 - p_0),     # the FFN: 2/3 of a layer
        "4a": 4 * kl, "4b": math.comb(12, 4),
        "5a": (budget - 10 * 4 * 64 * 760) // (2 * 760),
        "5b": (1 / 12.1 - 1 / 20) / (1 - 1 / 20), "5c": (1 / 5.2 - 1 / 20) / (1 - 1 / 20),
        "6a": sparsebert.num_kept(768 * 3072, 0.95), "6b": 32 / (1 + 0.05 * 32),
        "6c": sparsebert.cubic_sparsity(0.5, 1.0)}


def digest(question, number):
    """Return the digest of an answer, of which three digits count."""
    return hashlib.sha256(f"{question} {number:.3g}".encode()).hexdigest()[:8]


def check_answer(question, number):
    """Print whether a number, given as text, is the answer. Returns the exit code: 0 or 1."""
    if question not in DIGESTS:
        raise UserError(f"--answer must be followed by one of {', '.join(DIGESTS)}, got {question}")
    try:
        value = float(number.replace(",", ""))
    except ValueError as error:
        raise UserError(f"--answer {question} must be followed by a number such as 0.125, got "
                        f"{number}") from error
    is_right = digest(question, value) == DIGESTS[question]
    print(f"{question}: {'right' if is_right else 'not yet'} (three digits count)")
    return 0 if is_right else 1
