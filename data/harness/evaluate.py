"""Training batches, predictions and scores."""
import itertools
import math

import torch

from data.harness.device import to_device
from data.tokenized import batches


def training_batches(dataset, batch_size, seed, num_steps, start_step=0):
    """Yield batches start_step to num_steps, epoch after epoch, each shuffled in its own way.

    Resuming at any step gives the batches that an uninterrupted run would have had.
    """
    first_epoch, skip = divmod(start_step, math.ceil(len(dataset) / batch_size))
    epochs = (batches(dataset, batch_size, (seed, epoch)) for epoch in itertools.count(first_epoch))
    stream = itertools.chain.from_iterable(epochs)
    return itertools.islice(stream, skip, skip + num_steps - start_step)


@torch.no_grad()
def predict_logits(bert, dataset):
    """Predict logits for every example, in order (eval mode, fp32). Returns a list of arrays."""
    was_training, device = bert.training, bert.classifier.weight.device
    bert.eval()
    logits = [None] * len(dataset)
    for indices, batch in batches(dataset, 64):
        inputs, _ = to_device(device, batch)
        for index, row in zip(indices, bert(**inputs).logits.cpu().numpy()):
            logits[index] = row
    bert.train(was_training)
    return logits


def evaluate_dev(bert, data):
    """Return the scores of a network on the dev set of a task, as evaluate does."""
    return evaluate(bert, data.dev, data.metrics)


def evaluate(bert, dataset, metrics):
    """Return {metric: value} on a dataset, and {subset: value of the first metric on it}."""
    return dataset.score(predict_logits(bert, dataset), metrics)
