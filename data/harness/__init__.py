"""The harness: what every training run needs besides the two methods.

    cli         flags from a dataclass of settings
    device      device, precision and threads
    runs        folders of runs and teachers, and which settings must agree
    journal     the log of a run, and the checkpoints it resumes from
    progress    step counter, timer, running losses, when to log and when to save
    teacher     the teacher, or a cache of its outputs
    baselines   structures that are chosen without learning (--structure)
    evaluate    training batches, predictions and scores
    knowledge   what an encoder still knows of its language (sparsebert.py)
    console     the columns of the log, the terminal, exit codes
    drawing     what is left of a network, as text
    charts      runs as SVG
    report      speed-up, result.json and the printed report
    compare     the table and the chart of --compare
    commands    --evaluate, --predict, --submit and --export
"""
