"""Data: tasks, tokens, batches and metrics, and models on disk and on the hub.

Nothing in this package imports cofi.py or sparsebert.py. Only the scripts in data/toy, data/course,
data/results and data/tests may. Import by module: `from data.tasks import load_task`.
"""
