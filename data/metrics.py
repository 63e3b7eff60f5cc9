"""The scores of GLUE, in numpy: from predictions (n,) and labels (n,) to a float, at best 1.

Those of SQuAD: from texts and, for each, the texts that are accepted.
"""
import collections
import re
import string

import numpy as np


def accuracy(predicted, label):
    return float(np.mean(predicted == label))


def f1(predicted, label):
    """Harmonic mean of precision and recall of class 1.

    Example:
    >>> f1(np.array([1, 1, 0, 1]), np.array([1, 0, 0, 1]))   # precision 2/3, recall 1
    0.8
    """
    hits = np.sum((predicted == 1) & (label == 1))
    return float(2 * hits / max(np.sum(predicted == 1) + np.sum(label == 1), 1))


def matthews(predicted, label):
    """Correlation of two binary vectors; 0 if one of them is constant, which tells nothing.

    Example:
    >>> matthews(np.array([1, 1, 0, 0]), np.array([1, 1, 0, 0]))
    1.0
    >>> matthews(np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0]))
    0.0
    """
    return pearson(predicted, label)


def pearson(predicted, label):
    """Linear correlation; 0 if one side is constant."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (predicted, label))
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else 0.0


def spearman(predicted, label):
    """Correlation of ranks; equal values share the mean of their ranks."""
    return pearson(ranks(predicted), ranks(label))


def ranks(values):
    """Ranks from 0, ties averaged.

    Example:
    >>> ranks([10, 30, 30, 20])
    array([0. , 2.5, 2.5, 1. ])
    """
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[group]


def plain(text):
    """Words of an answer as SQuAD compares them: no case, ASCII punctuation or article.

    Example:
    >>> plain("The U.S.A., a  nation")
    ['usa', 'nation']
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(text, accepted):
    """F1 of the words of two texts; if one has no words, 1 if neither has."""
    a, b = plain(text), plain(accepted)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if a and b else float(a == b)


def exact_match(texts, answers):
    """The share of texts that equal one of their accepted texts; compared by words."""
    return float(np.mean([any(plain(text) == plain(answer) for answer in accepted)
                          for text, accepted in zip(texts, answers)]))


def squad_f1(texts, answers):
    """The overlap with the closest of the accepted texts, in the mean over the questions.

    Example:
    >>> squad_f1(["in the blue house"], [["a house", "blue house"]])    # in; blue, house of 3 and 2
    0.8
    """
    return float(np.mean([max(overlap(text, answer) for answer in accepted)
                          for text, accepted in zip(texts, answers)]))


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman, exact_match,
                                   squad_f1)}
