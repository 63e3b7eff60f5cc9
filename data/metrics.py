"""Metrics in numpy, each a float of at most 1.

GLUE: from predictions (n,) and labels (n,). SQuAD: from texts and the accepted texts of each.
"""
import collections
import re
import string

import numpy as np


def accuracy(predicted, labels):
    return float(np.mean(predicted == labels))


def f1(predicted, labels):
    """Harmonic mean of precision and recall of class 1.

    Example:
    >>> f1(np.array([1, 1, 0, 1]), np.array([1, 0, 0, 1]))   # precision 2/3, recall 1
    0.8
    """
    hits = np.sum((predicted == 1) & (labels == 1))
    return float(2 * hits / max(np.sum(predicted == 1) + np.sum(labels == 1), 1))


def matthews(predicted, labels):
    """Matthews correlation of two binary vectors; 0 if one of them is constant.

    Example:
    >>> matthews(np.array([1, 1, 0, 0]), np.array([1, 1, 0, 0]))
    1.0
    >>> matthews(np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0]))
    0.0
    """
    return pearson(predicted, labels)


def pearson(predicted, labels):
    """Linear correlation; 0 if one side is constant."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (predicted, labels))
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else 0.0


def spearman(predicted, labels):
    """Correlation of ranks; equal values share the mean of their ranks."""
    return pearson(ranks(predicted), ranks(labels))


def ranks(values):
    """Ranks from 0, ties averaged.

    Example:
    >>> ranks([10, 30, 30, 20])
    array([0. , 2.5, 2.5, 1. ])
    """
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[group]


def normalize_answer(text):
    """Split an answer into words as SQuAD does: no case, no ASCII punctuation, no articles.

    Example:
    >>> normalize_answer("The U.S.A., a  nation")
    ['usa', 'nation']
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(text, accepted):
    """F1 of the words of two texts. If one has no words: 1 if neither has any, else 0."""
    a, b = normalize_answer(text), normalize_answer(accepted)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if a and b else float(a == b)


def exact_match(texts, answers):
    """Share of texts that equal one of their accepted texts, word by word."""
    hits = [normalize_answer(text) in [normalize_answer(answer) for answer in accepted]
            for text, accepted in zip(texts, answers)]
    return float(np.mean(hits))


def squad_f1(texts, answers):
    """Mean over the questions of the token F1 with the closest accepted text.

    Example:
    >>> squad_f1(["in the blue house"], [["a house", "blue house"]])    # in; blue, house of 3 and 2
    0.8
    """
    return float(np.mean([max(token_f1(text, answer) for answer in accepted)
                          for text, accepted in zip(texts, answers)]))


METRICS = {metric.__name__: metric for metric in (
    accuracy, f1, matthews, pearson, spearman, exact_match, squad_f1)}
