"""The scores of GLUE, in numpy: from predictions (n,) and labels (n,) to a float, at best 1."""
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


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman)}
