"""What is left of a pruned network, as text."""


def text_bar(part, whole, width=20):
    """Draw a bar of `width` characters in steps of an eighth. A part above 0 is always visible.

    Example:
    >>> text_bar(3, 4, 4) + "|", text_bar(1, 1000, 4) + "|"
    ('███ |', '▏   |')
    """
    eighths = max(round(8 * width * part / whole), int(part > 0))
    last = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return ("█" * (eighths // 8) + last).ljust(width)


def for_encoding(picture, encoding):
    """Return a picture with ASCII marks if a terminal with this encoding cannot show the blocks.

    Example:
    >>> print(for_encoding("■ · ██▌", "cp1252"))
    # . ###
    """
    try:
        picture.encode(encoding or "ascii")
        return picture
    except UnicodeEncodeError:
        return picture.translate(str.maketrans("■█▉▊▋▌▍▎▏·", "#########."))


def draw_structure(config, z, distilled, m=None):
    """Draw the structure that masks leave: one row a layer, the last layer on top.

    Each head is a mark, the FFN units are a bar. config: the sizes before pruning; z: the final
    masks; distilled: the teacher layers that are distilled; m: the student layer matched to each.
    """
    L, h = len(config.heads_per_layer), config.heads_per_layer[0]
    column = 2 * h + 4
    lines = [f"layer  {'heads':{column}}{'FFN units':34}learns from teacher layer"]
    for i in reversed(range(L)):
        heads = (z["z_head"][i] > 0).tolist()
        units = int((z["z_int"][i] > 0).sum())
        f = config.ffn_per_layer[i]
        marks = " ".join("■" if is_open else "·" for is_open in heads)
        teachers = ""
        if units or sum(heads):         # a dead layer learns nothing more
            teachers = ", ".join(str(j + 1) for j, student in zip(distilled, m or [])
                                 if student == i)
        line = (f"{i + 1:5}  {marks}{sum(heads) or '-':>3}  {text_bar(units, f)}"
                f"{units or '-':>6} of {f:<6}{teachers}")
        lines.append(line.rstrip())
    d, kept = config.hidden_size, int((z["z_hidn"] > 0).sum())
    lines.append(f"    d  {'':{column}}{text_bar(kept, d)}{kept:6} of {d}")
    return "\n".join(lines)
