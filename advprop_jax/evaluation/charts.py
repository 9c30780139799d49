"""Charts of a report, as SVG that takes its colours from the page.

matplotlib, since it writes SVG whose text is text and needs no browser. All charts are
as wide as a phone, and a page puts them side by side where there is room.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import figure, ticker

NUM_COLOURS = 7  # Of series; report.html has the values, for light and dark.
# What is drawn in these colours takes that of a CSS variable.
_VARIABLES = {f'#0000{i + 1:02x}': f'var(--series-{i})' for i in range(NUM_COLOURS)}
_INK, _SOFT, _LINE, _PAPER = '#010000', '#020000', '#030000', '#040000'
_VARIABLES |= {_INK: 'var(--ink)', _SOFT: 'var(--soft)', _LINE: 'var(--line)'}
_VARIABLES |= {_PAPER: 'var(--paper)'}
_SERIES = tuple(_VARIABLES)[:NUM_COLOURS]
_WIDTH = 3.6  # Inches: 9 points are then 12 pixels on a phone.
_SMALL = 7.5  # Points.
_STEPS = (1, 2, 5, 10)  # Of ticks.
_PERCENT = ticker.FuncFormatter(lambda share, _: f'{100 * share:.4g}%')
_DASHES = ('solid', (0, (4, 2)), (0, (1, 1.5)))
_STYLE: dict[Any, Any] = {
  'svg.fonttype': 'none',
  'font.family': 'sans-serif',
  'font.size': 8.5,
  'text.parse_math': False,  # Names of users may have dollar signs.
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'axes.edgecolor': _LINE,
  'axes.labelcolor': _SOFT,
  'axes.labelsize': _SMALL,
  'axes.axisbelow': True,
  'grid.color': _LINE,
  'grid.linewidth': 0.7,
  'xtick.color': _LINE,
  'ytick.color': _LINE,
  'xtick.labelcolor': _SOFT,
  'ytick.labelcolor': _SOFT,
  'xtick.labelsize': _SMALL,
  'ytick.labelsize': _SMALL,
  'ytick.major.size': 0,
  'text.color': _INK,
  'lines.solid_capstyle': 'round',
}


class Line(NamedTuple):
  """A series of a chart of lines."""

  colour: int  # Of the run, counted from 0.
  dash: int  # Of the branch, likewise; 0 is solid.
  name: str  # At its end; '': none.
  points: Sequence[tuple[float, float]]


def lines(
  title: str,
  series: Sequence[Line],
  *,
  is_share: bool,
  x_name: str = 'step',
  is_counted: bool = True,
  starts_at_0: bool = False,
) -> str:
  """Draws values by step, or by something else.

  Args:
    title: what the values are.
    series: at least one, with at least one point each.
    is_share: whether they are shares of 1, shown in percent.
    x_name: what they are by.
    is_counted: whether that is a number of things, and has no fractions.
    starts_at_0: whether 0 is in the picture, whatever the values.
  """

  def draw(axes):
    for line in series:
      x, y = zip(*line.points, strict=True)
      axes.plot(
        *(x, y),
        color=_colour(line.colour),
        alpha=_alpha(line.colour),
        linestyle=_DASHES[min(line.dash, len(_DASHES) - 1)],
        linewidth=1.7,
        marker='o' if len(x) < 8 else '',
        markersize=3.2,
      )
    axes.set_xlabel(x_name)
    axes.grid(axis='y')
    if is_counted:
      axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))  # 50k.
    axes.xaxis.set_major_locator(
      ticker.MaxNLocator(5, integer=is_counted, steps=_STEPS)
    )
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
    if is_share:
      axes.yaxis.set_major_formatter(_PERCENT)
      low = 0.0 if starts_at_0 else axes.get_ylim()[0]
      axes.set_ylim(max(low, 0.0) if low > 0.3 else 0.0, 1.0 + 0.03 * (1 - max(low, 0)))
    else:
      axes.set_ylim(bottom=0.0)
    _name_ends(axes, [line for line in series if line.name])

  named = any(line.name for line in series)
  return _svg(title, draw, height=2.3, right=0.84 if named else 0.98)


def _name_ends(axes, series: Sequence[Line]):
  """Writes the names of lines at their ends, from below, so that all can be read."""
  low, high = axes.get_ylim()
  place = -np.inf
  for line in sorted(series, key=lambda line: line.points[-1][1]):
    x, y = line.points[-1]
    place = max(y, place + 0.085 * (high - low))
    axes.annotate(
      *(line.name, (x, place), (4, 0)),
      textcoords='offset points',
      color=_colour(line.colour),
      fontsize=_SMALL,
      va='center',
      annotation_clip=False,
    )


def bars(title: str, groups: Mapping[str, Mapping[int, float]]) -> str:
  """Draws horizontal bars of shares, those of a group together, with their values.

  Args:
    title: what the groups have in common.
    groups: {name: {number of the series: share of 1}}.
  """
  series = sorted({j for values in groups.values() for j in values})
  size = 0.16 if len(series) > 1 else 0.2  # Inches.
  height = len(series) * size + 0.24  # Of a group, with its name above it.

  def draw(axes):
    for i, (name, values) in enumerate(groups.items()):
      top = i * height
      axes.text(0, top + 0.13, name, va='center', fontsize=8.5)
      for j, x in values.items():
        y = top + 0.24 + (series.index(j) + 0.5) * size
        axes.barh(y, 1.0, size * 0.8, color=_LINE, alpha=0.35)
        axes.barh(y, x, size * 0.8, color=_colour(j), alpha=_alpha(j))
        axes.text(1.02, y, f'{100 * x:.1f}', va='center', fontsize=_SMALL)
    axes.set(xlim=(0, 1), ylim=(len(groups) * height, 0))
    axes.axis('off')

  return _svg(title, draw, height=len(groups) * height, left=0.0, right=0.9, full=True)


class Fall(NamedTuple):
  """How far the accuracy of a branch falls: shares of 1, None where there is none."""

  name: str
  colour: int
  clean: float | None
  corrupted: float | None
  attacked: float | None


# Of `Fall` -> marker, and how it is written: told apart without colours.
MARKERS = {'clean': ('o', '●'), 'corrupted': ('D', '◆'), 'attacked': ('o', '○')}


def falls(title: str, rows: Sequence[Fall]) -> str:
  """Draws a line for each branch, from its accuracy on clean images downwards."""

  def draw(axes):
    for i, row in enumerate(rows):
      colour, y = _colour(row.colour), i + 0.72
      found = {k: x for k in MARKERS if (x := getattr(row, k)) is not None}
      ends = min(found.values()), max(found.values())
      axes.plot((0, 1), (y, y), color=_LINE, linewidth=0.7)
      axes.plot(ends, (y, y), color=colour, alpha=0.5, linewidth=2)
      for kind in reversed(found):
        axes.plot(
          *(found[kind], y, MARKERS[kind][0]),
          color=colour,
          alpha=_alpha(row.colour),
          markerfacecolor=_PAPER if kind == 'attacked' else colour,
          markersize=4 if kind == 'corrupted' else 6,
          markeredgewidth=1.6,
          clip_on=False,
        )
      for right, kind in zip((0.68, 0.84, 1.0), MARKERS, strict=True):
        text = f'{MARKERS[kind][1]} {100 * found[kind]:.1f}' if kind in found else ''
        _caption(axes, i + 0.3, row.name if right == 1 else '', text, right=right)
    axes.set(xlim=(0, 1), ylim=(len(rows) + 0.15, 0))
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.set_yticks([])

  return _svg(title, draw, height=len(rows) * 0.36 + 0.35, left=0.04, right=0.96, top=0)


def _caption(axes, y: float, name: str, text: str, *, right: float):
  """Writes a name above what belongs to it, and numbers at the other end."""
  name = ' '.join(name.split())
  if len(name) > 27:  # The ends of names are what tells runs apart.
    name = f'…{name[-26:]}'
  axes.text(0, y, name, va='center', fontsize=8)
  axes.text(right, y, text, ha='right', va='center', fontsize=_SMALL, color=_SOFT)


def reliability(title: str, colour: int, bins: Mapping[str, Mapping[str, Any]]) -> str:
  """Draws accuracy over confidence, in bins; on the diagonal they are the same.

  Args:
    title: what the examples are of.
    colour: of the run.
    bins: {'clean' or 'attacked': {'count', 'confidence', 'accuracy'}}, each one of a
      bin, and None in empty ones.
  """

  def draw(axes):
    axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
    for kind, found in bins.items():
      keys = ('count', 'confidence', 'accuracy')
      filled = [x for x in zip(*map(found.get, keys), strict=True) if x[0]]
      if not filled:
        continue
      count, confidence, accuracy = np.array(filled, float).T
      axes.plot(
        *(confidence, accuracy),
        color=_colour(colour),
        alpha=_alpha(colour),
        linestyle=_DASHES[kind == 'attacked'],
        linewidth=1,
      )
      axes.scatter(
        *(confidence, accuracy),
        s=8 + 130 * count / count.sum(),
        facecolor=_PAPER if kind == 'attacked' else _colour(colour),
        edgecolor=_colour(colour),
        alpha=_alpha(colour),
        linewidth=1.3,
        zorder=3,
        clip_on=False,
      )
    for x, y, text, side in (
      (0.03, 0.91, 'underconfident', 'left'),
      (0.97, 0.09, 'overconfident', 'right'),
    ):
      axes.text(x, y, text, color=_SOFT, fontsize=_SMALL, ha=side, va='center')
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='confidence', ylabel='accuracy')
    axes.grid()
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(ticker.MultipleLocator(0.25))
      axis.set_major_formatter(_PERCENT)

  return _svg(title, draw, width=2.9, height=2.75, left=0.17, right=0.95)


def phases(title: str, runs: Mapping[str, Mapping[str, float]]) -> str:
  """Draws for each run a bar of seconds, divided by what they were spent on.

  Args:
    title: what it shows.
    runs: {run: {phase: seconds}}.
  """
  names = phase_names(runs)
  longest = max(sum(x.values()) for x in runs.values())
  row_height = 0.46  # Inches.

  def draw(axes):
    for i, (run, secs) in enumerate(runs.items()):
      total, left = sum(secs.values()), 0.0
      for j, phase in enumerate(names):
        x = secs.get(phase, 0.0)
        axes.barh(i + 0.68, x, 0.4, left=left, color=_colour(j), alpha=_alpha(j))
        left += x
      share = f'{100 * secs.get("train", 0.0) / total:.0f} % training' if total else ''
      _caption(axes, i + 0.27, run, f'{duration(total)}, {share}', right=longest)
    axes.set(xlim=(0, longest or 1), ylim=(len(runs), 0))
    axes.axis('off')

  return _svg(
    title, draw, height=row_height * len(runs), left=0.0, right=1.0, full=True
  )


def phase_names(runs: Mapping[str, Mapping[str, float]]) -> list[str]:
  """Returns what time was spent on, training first."""
  names = dict.fromkeys(x for run in runs.values() for x in run)
  return sorted(names, key=lambda x: x != 'train')


def duration(secs: float) -> str:
  """Returns '98 s', '12 min' or '3.4 h'."""
  for limit, unit, text in ((100, 1, '{:.0f} s'), (6000, 60, '{:.0f} min')):
    if secs < limit:
      return text.format(secs / unit)
  return f'{secs / 3600:.1f} h'


def _colour(index: int) -> str:
  return _SERIES[index % NUM_COLOURS]


def _alpha(index: int) -> float:
  """Returns how opaque a series is: less, where the colours begin anew."""
  return 0.45 if index // NUM_COLOURS % 2 else 1.0


def _svg(
  title: str,
  draw: Callable[[Any], None],
  *,
  height: float,
  width: float = _WIDTH,
  left: float = 0.11,
  right: float = 0.98,
  top: float = 0.12,
  full: bool = False,
) -> str:
  """Returns what `draw` draws into axes, as an element of a page.

  Args:
    title: for those who do not see it.
    draw: takes the axes.
    height: in inches.
    width: in inches.
    left: where the axes begin, as a share of the width.
    right: where they end.
    top: room above them, in inches.
    full: whether they have no room above and below.
  """
  low, high = (0.0, 1.0) if full else (0.4 / height, 1 - top / height)
  with mpl.rc_context({**_STYLE, 'svg.hashsalt': title}), warnings.catch_warnings():
    # matplotlib measures with a font of its own, which lacks some scripts.
    warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
    picture = figure.Figure((width, height))
    space = {'left': left, 'right': right, 'bottom': low, 'top': high}
    draw(picture.subplots(gridspec_kw=space))
    buffer = io.StringIO()
    picture.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
  return _for_page(buffer.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
  """Returns a file's SVG as an element, in the page's colours and without its size."""
  start, _, body = svg[svg.index('<svg') :].partition('>')
  box = re.search(r'viewBox="[^"]*"', start)
  body = re.sub(r'<metadata>.*?</metadata>', '', body, flags=re.DOTALL)
  # Groups have the same ids in every chart. Of other ids each has a hash of the title.
  body = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', '', body)
  body = re.sub(r'font-family: [^;\"]*;? ?', '', body)  # The page's.
  body = re.sub(r'<style.*?</style>', '', body, flags=re.DOTALL)  # Of all charts.
  body = re.sub(
    '|'.join(_VARIABLES), lambda found: _VARIABLES[found[0].lower()], body, flags=re.I
  )
  label = ''.join(f'&#{ord(x)};' if x in '<>&"' else x for x in title)
  return f'<svg role="img" aria-label="{label}" {box[0] if box else ""}>{body}'
