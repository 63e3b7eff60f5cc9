"""Line charts as SVG, side by side: for a slide, without a plotting library."""
import itertools
import math
from html import escape

WIDTH, HEIGHT = 460, 260                        # of a panel, in pixels
LEFT, TOP, RIGHT, BOTTOM = 48, 34, 110, 40      # its margins
COLOURS = ("#1f5fa8", "#c8471c", "#2c8a4b", "#8a4fb0", "#7a6a10", "#4a4a4a")    # easy to tell


def ticks(low, high, most=5):
    """Return round numbers from low to high, about `most` of them.

    Example:
    >>> ticks(0, 940), ticks(0.5, 1)
    ([0.0, 200.0, 400.0, 600.0, 800.0], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    """
    steps = (m * 10.0**e for e in range(-9, 12) for m in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 9) for i in range(first, last + 1)]


def text(x, y, words, attributes=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(words)}</text>'


class Scale:
    """Map values to pixels of a panel."""

    def __init__(self, points):
        xs, ys = zip(*points)
        self.low = min(xs), min(ys)
        # One value alone still needs a range.
        self.high = [high if high > low else low + 1
                     for low, high in zip(self.low, (max(xs), max(ys)))]
        self.per_x = (WIDTH - LEFT - RIGHT) / (self.high[0] - self.low[0])
        self.per_y = (HEIGHT - TOP - BOTTOM) / (self.high[1] - self.low[1])

    def x(self, value):
        return LEFT + (value - self.low[0]) * self.per_x

    def y(self, value):
        return HEIGHT - BOTTOM - (value - self.low[1]) * self.per_y


def free_place(x, y, taken):
    """Move a name up or down until it covers no other name."""
    step = 13 if y < HEIGHT / 2 else -13
    while any(abs(x - a) < RIGHT and abs(y - b) < 13 for a, b in taken):
        y += step
    taken.append((x, y))
    return x, y


def axes(title, along, scale):
    parts = [text(LEFT, 18, title, 'font-weight="bold"'),
             text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, along, 'text-anchor="middle"')]
    for value in ticks(scale.low[1], scale.high[1]):
        y = scale.y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, y + 4, f"{value:g}", 'text-anchor="end"'))
    for value in ticks(scale.low[0], scale.high[0]):
        x = scale.x(value)
        parts.append(text(x, HEIGHT - BOTTOM + 16, f"{value:g}", 'text-anchor="middle"'))
    return parts


def panel(title, along, lines, dots=False):
    """Draw one chart. lines: {name: [(x, y), ...]}; along: what x is; dots: points without lines.
    """
    scale = Scale([point for line in lines.values() for point in line])
    parts, taken = axes(title, along, scale), []
    radius = 5 if dots else 2.5
    for (name, line), colour in zip(lines.items(), itertools.cycle(COLOURS)):
        places = [(scale.x(x), scale.y(y)) for x, y in line]
        if not dots:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                         'stroke-width="2"/>')
        for x, y in places:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')
        x, y = free_place(*places[-1], taken)
        parts.append(text(x + 8, y + 4, name, f'fill="{colour}"'))
    return "".join(parts)


def chart(panels):
    """Return an SVG file of panels (each the arguments of `panel`), two in a row."""
    rows = (len(panels) + 1) // 2
    width = WIDTH * min(len(panels), 2)
    placed = ""
    for i, arguments in enumerate(panels):
        x, y = WIDTH * (i % 2), HEIGHT * (i // 2)
        placed += f'<g transform="translate({x} {y})">{panel(*arguments)}</g>\n'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT * rows}" '
            'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
            f'fill="white"/>\n{placed}</svg>\n')


def plot_run(records, distilled, results):
    """Return an SVG of a run: s and t, the multipliers, m(i), and score over speed-up of all runs.

    records: of the log; distilled: the teacher layers that are distilled; results: result.json of
    the finished runs of one task, this one's last.
    """
    pruning = [record for record in records if "s" in record]

    def over_steps(*names):
        return {name: [(r["step"], r[name]) for r in pruning] for name in names}

    matching = {}
    for i, layer in enumerate(distilled):
        matching[f"from {layer + 1}"] = [(r["step"], r["m"][i] + 1) for r in pruning
                                         if r["m"] and r["m"][i] >= 0]
    panels = []
    for title, lines in (("sparsity and its target", over_steps("s", "t")),
                         ("the multipliers", over_steps("lambda1", "lambda2")),
                         ("student layer matched to a teacher layer", matching)):
        lines = {name: line for name, line in lines.items() if line}
        if lines:
            panels.append((title, "step of pruning", lines))
    by_sparsity = {"teacher": [(1.0, results[-1]["teacher_score"])]}
    for r in results:
        name = f"{r['target_sparsity']:g}"
        by_sparsity.setdefault(name, []).append((r["speedup"]["32"], r["score"]))
    title = f"{results[-1]['metric']} over speed-up, batch 32"
    panels.append((title, "speed-up", by_sparsity, True))
    return chart(panels)
