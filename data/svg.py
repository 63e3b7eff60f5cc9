"""Line charts as SVG, side by side: for a slide, without a library."""
import itertools
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 400, 240, 48, 34, 62, 40      # of a panel, in pixels
COLOURS = "#1f5fa8", "#c8471c", "#2c8a4b", "#8a4fb0", "#7a6a10"     # apart for most eyes


def ticks(low, high, most=5):
    """Round numbers from low to high, at most so many.

    Example:
    >>> ticks(0, 940), ticks(0.5, 1)
    ([0.0, 200.0, 400.0, 600.0, 800.0], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    """
    step = next(m * 10.0**e for e in range(-9, 12) for m in (1, 2, 5)
                if (high - low) / (m * 10.0**e) <= most)
    first = -int(-low / step + 1e-9) if low < 0 else int(low / step + 1 - 1e-9)
    return [round(i * step, 9) for i in range(first, int(high / step + 1e-9) + 1)]


def panel(title, along, lines, dots=False):
    """One chart. lines: {name: [(x, y), ...]}; along: what x is; dots: no lines between points."""
    points = [point for line in lines.values() for point in line]
    low, high = ([f(point[i] for point in points) for i in (0, 1)] for f in (min, max))
    high = [b if b > a else a + 1 for a, b in zip(low, high)]
    scale = [pixels / (b - a) for pixels, a, b in zip(
        (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM), low, high)]

    def at(x, y):
        return LEFT + (x - low[0]) * scale[0], HEIGHT - BOTTOM - (y - low[1]) * scale[1]

    def text(x, y, words, how=""):
        return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(words)}</text>'

    out = [text(LEFT, 18, title, 'font-weight="bold"'),
           text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, along, 'text-anchor="middle"')]
    for y in ticks(low[1], high[1]):
        out += [f'<path d="M{LEFT} {at(0, y)[1]:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>',
                text(LEFT - 6, at(0, y)[1] + 4, f"{y:g}", 'text-anchor="end"')]
    out += [text(at(x, 0)[0], HEIGHT - BOTTOM + 16, f"{x:g}", 'text-anchor="middle"')
            for x in ticks(low[0], high[0])]
    taken = []
    for (name, line), colour in zip(lines.items(), itertools.cycle(COLOURS)):
        places = [at(*point) for point in line]
        if not dots:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                       'stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if dots else 2.5}" fill="{colour}"/>'
                for x, y in places]
        x, y = places[-1]
        away = 13 if y < HEIGHT / 2 else -13
        while any(abs(x - a) < RIGHT and abs(y - b) < 13 for a, b in taken):    # names that would
            y += away                                                           # cover each other
        taken.append((x, y))
        out.append(text(x + 8, y + 4, name, f'fill="{colour}"'))
    return "".join(out)


def chart(panels):
    """An SVG file's text of panels (the arguments of panel), two in a row."""
    rows = (len(panels) + 1) // 2
    placed = (f'<g transform="translate({WIDTH * (i % 2)} {HEIGHT * (i // 2)})">{panel(*p)}</g>\n'
              for i, p in enumerate(panels))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT * rows}" '
            'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
            f'fill="white"/>\n{"".join(placed)}</svg>\n')
