"""The printed log of both programs: its head and its lines."""

COFI_LEGEND = """\
L_pred   mean since the line above         s        expected sparsity       score  on the dev set
         (loss on the labels without a     t        target sparsity         m      student layer
         teacher or with pred_weight 0)    lambda1  linear multiplier              matched to each
L_layer  mean since the line above         lambda2  quadratic multiplier           distilled layer

"""
COFI_HEADER = "stage       step   L_pred  L_layer       s       t   lambda1   lambda2   score  m"

SPARSEBERT_LEGEND = """\
L_hidden, L_att, L_pred   means since the line above, before their weights; without distillation
                          L_pred is the loss on the labels
s                         share of zeros;   dev: score on the dev set

"""
SPARSEBERT_HEADER = "strategy           step  L_hidden     L_att    L_pred       s     dev"


def print_header(folder, notes, columns):
    """Print what a run begins with: its folder, notes for the user, and the head of the log."""
    print(f"run        {folder}")
    for note in notes:
        print(f"note       {note}")
    print(f"\n{columns}")


def cofi_line(record):
    """Format a record of cofi.py's log. The first layer is printed as 1, no match as a dot."""
    line = "{stage:9}{step:7}{L_pred:9.4f}{L_layer:9.4f}".format(**record)
    if "s" in record:
        line += "{s:8.4f}{t:8.4f}{lambda1:10.3f}{lambda2:10.3f}".format(**record)
    else:
        line += f"{'-':>8}{'-':>8}{'-':>10}{'-':>10}"
    matched = " ".join("." if layer < 0 else str(layer + 1) for layer in record["m"] or [])
    return f"{line}{record['score']:8.4f}  {matched}"


def sparsebert_line(record):
    """Format a record of sparsebert.py's log."""
    dev = next(iter(record["scores"].values()))
    line = "{strategy:15}{step:8}{L_hidden:10.4f}{L_att:10.4f}{L_pred:10.4f}{s:8.4f}"
    return line.format(**record) + f"{dev:8.4f}"
