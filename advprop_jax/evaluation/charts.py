"""Charts of a report, as SVG that takes its text colour from the page.

matplotlib, since it writes SVG whose text is text and needs no browser. The colours of
series are those of Okabe and Ito, told apart by the colour-blind and on light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cycler
import matplotlib as mpl
import numpy as np
from matplotlib import figure, ticker

COLOURS = ('#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9')
_INK = '#010203'  # What is drawn in it becomes the text colour of the page.
_STYLE: dict[Any, Any] = {
  'svg.fonttype': 'none',
  'font.family': 'sans-serif',
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.prop_cycle': cycler.cycler(color=COLOURS),
  'lines.linewidth': 1.6,
  'legend.frameon': False,
  **dict.fromkeys(
    ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'),
    _INK,
  ),
}

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # Name -> (x, y).


def lines(title: str, series: Series, *, is_share: bool) -> str:
  """Draws a line for each series, named at its end.

  Args:
    title: what the values are.
    series: values by step.
    is_share: whether they are shares of 1, shown in percent.
  """

  def draw(axes):
    ends: list[tuple[float, float, str, str]] = []
    for i, (name, (x, y)) in enumerate(series.items()):
      colour = COLOURS[i % len(COLOURS)]
      axes.plot(x, y, color=colour, marker='o' if len(x) < 30 else '', markersize=3)
      ends.append((float(y[-1]), float(x[-1]), name, colour))
    low, high = axes.get_ylim()
    ends.sort()
    places = _apart([x[0] for x in ends], least=0.09 * (high - low), most=high)
    for place, (_, last, name, colour) in zip(places, ends, strict=True):
      axes.annotate(
        _plain(name),
        (last, place),
        (3, 0),
        textcoords='offset points',
        color=colour,
        va='center',
        annotation_clip=False,
      )
    axes.set_xlabel('step')
    if is_share:
      axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(axis='y', alpha=0.25)

  longest = max(map(len, series))  # Its name stands on the right.
  return _svg(title, draw, width=5.6, height=2.6, right=0.93 - 0.0125 * longest)


def bars(title: str, groups: Mapping[str, Mapping[str, float | None]]) -> str:
  """Draws horizontal bars of shares, those of a group together.

  Args:
    title: what the values are.
    groups: {group: {series: share of 1, or None where there is none}}.
  """
  names = list(dict.fromkeys(x for group in groups.values() for x in group))

  def draw(axes):
    height = 0.8 / len(names)
    for j, name in enumerate(names):
      y = np.arange(len(groups)) + (j - (len(names) - 1) / 2) * height
      values = [group.get(name) for group in groups.values()]
      axes.barh(
        y,
        [x or 0.0 for x in values],
        height * 0.9,
        color=COLOURS[j % len(COLOURS)],
        label=_plain(name),
      )
      for place, x in zip(y, values, strict=True):
        text = '' if x is None else f' {100 * x:.0f}'
        axes.text(x or 0.0, place, text, va='center', fontsize=7)
    axes.set_yticks(np.arange(len(groups)), list(map(_plain, groups)))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06)
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.tick_params(axis='y', length=0)
    if len(names) > 1:
      axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=len(names))

  rows = len(groups) * (0.14 + 0.13 * len(names))
  return _svg(title, draw, width=5.6, height=0.9 + rows, left=0.26)


def reliability(title: str, series: Mapping[str, Mapping[str, Sequence]]) -> str:
  """Draws accuracy over confidence, in bins; the diagonal is calibrated.

  Args:
    title: what the examples are.
    series: {name: {'count', 'confidence', 'accuracy'}}, each one of a bin.
  """

  def draw(axes):
    axes.plot([0, 1], [0, 1], color=_INK, alpha=0.4, linestyle=':')
    for i, (name, bins) in enumerate(series.items()):
      filled = [j for j, n in enumerate(bins['count']) if n]
      count = np.array([bins['count'][j] for j in filled], float)
      axes.plot(
        [bins['confidence'][j] for j in filled],
        [bins['accuracy'][j] for j in filled],
        color=COLOURS[i % len(COLOURS)],
        alpha=0.6,
        linewidth=1,
      )
      axes.scatter(
        [bins['confidence'][j] for j in filled],
        [bins['accuracy'][j] for j in filled],
        s=6 + 120 * count / count.sum(),
        color=COLOURS[i % len(COLOURS)],
        label=_plain(name),
      )
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel='confidence', ylabel='accuracy')
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.legend(loc='lower right')

  return _svg(title, draw, width=3.6, height=3.4)


def confusion(title: str, table: Sequence[Sequence[int]], names: Sequence[str]) -> str:
  """Draws how often each class, by row, was taken for which, in shares of its images.

  Args:
    title: what the examples are.
    table: K rows of K counts.
    names: K classes.
  """
  counts = np.array(table, float)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  size = min(7.0, 1.6 + 0.27 * len(names))

  def draw(axes):
    colours = mpl.colors.LinearSegmentedColormap.from_list(
      'x', [(*mpl.colors.to_rgb(COLOURS[0]), x) for x in (0.0, 1.0)]
    )
    axes.imshow(shares**0.5, cmap=colours, vmin=0, vmax=1)
    if len(names) <= 30:
      axes.set_xticks(range(len(names)), list(map(_plain, names)), rotation=90)
      axes.set_yticks(range(len(names)), list(map(_plain, names)))
    if len(names) <= 12:
      for i, j in np.argwhere(counts):
        axes.text(j, i, f'{counts[i, j]:.0f}', ha='center', va='center', fontsize=7)
    axes.set(xlabel='predicted', ylabel='true class')

  return _svg(title, draw, width=size, height=size, left=0.24, bottom=0.24)


def stacked(title: str, runs: Mapping[str, Mapping[str, float]]) -> str:
  """Draws for each run a bar of seconds, divided by what they were spent on.

  Args:
    title: what it shows.
    runs: {run: {phase: seconds}}.
  """
  phases = list(dict.fromkeys(x for run in runs.values() for x in run))

  def draw(axes):
    left = np.zeros(len(runs))
    for i, phase in enumerate(phases):
      secs = np.array([run.get(phase, 0.0) for run in runs.values()])
      colour = COLOURS[i % len(COLOURS)]
      axes.barh(
        range(len(runs)), secs, 0.6, left=left, color=colour, label=_plain(phase)
      )
      left += secs
    axes.set_yticks(range(len(runs)), list(map(_plain, runs)))
    axes.invert_yaxis()
    axes.set_xlabel('seconds')
    axes.tick_params(axis='y', length=0)
    columns = min(3, len(phases))  # More may be too wide.
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=columns)

  height = 1.4 + 0.3 * len(runs)
  return _svg(title, draw, width=5.6, height=height, left=0.26, top=0.6)


def _apart(places: list[float], *, least: float, most: float) -> list[float]:
  """Returns ascending places moved so far apart that names there can be read."""
  places = list(places)
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + least)
  for i in reversed(range(len(places))):
    places[i] = min(places[i], most)
    most = places[i] - least
  return places


def _plain(name: str) -> str:
  """Returns a text without what matplotlib reads as formulas or leaves out."""
  return f' {name}'.replace('$', r'\$')


def _svg(
  title, draw, *, width, height, left=0.12, right=0.97, bottom=None, top=0.3
) -> str:
  """Returns what `draw` draws into axes, as an element of a page.

  Args:
    title: for those who do not see it, and the beginning of its ids.
    draw: takes the axes.
    width: in inches.
    height: in inches.
    left: where the axes begin, as a share of the width.
    right: where they end.
    bottom: where they begin, as a share of the height; None: room for a label.
    top: room above them, in inches.
  """
  bottom = 0.42 / height if bottom is None else bottom
  with mpl.rc_context({**_STYLE, 'svg.hashsalt': title}):
    picture = figure.Figure((width, height))
    space = {'left': left, 'right': right, 'bottom': bottom, 'top': 1 - top / height}
    draw(picture.subplots(gridspec_kw=space))
    buffer = io.StringIO()
    picture.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
  svg = buffer.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  # Groups have the same ids in every chart; what is referred to has a hash in it.
  svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', '', svg)
  svg = svg.replace(_INK, 'currentColor')
  svg = re.sub(r'font-family: [^;"]*', 'font-family: inherit', svg)
  # Its size is the page's business.
  svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r'<svg \1', svg, count=1)
  svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r'<svg \1', svg, count=1)
  label = _escape(title)
  start = f'<svg role="img" aria-label="{label}" style="max-width:{96 * width:.0f}px"'
  return svg.replace('<svg', start, 1)


def _escape(text: str) -> str:
  for character, entity in (('&', '&amp;'), ('<', '&lt;'), ('"', '&quot;')):
    text = text.replace(character, entity)
  return text
