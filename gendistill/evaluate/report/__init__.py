"""Pages: the report of a run, and a look inside sets. One HTML file each, for any browser without a network.

They take plain data (``RunFacts``, ``ShowFacts``, gathered by stages/) and give text. Accuracies are fractions here and
per cent on the page; differences are in points, that is per cent of the test images.
"""

from gendistill.evaluate.report.page import RunFacts, render
from gendistill.evaluate.report.shown import Sheet, ShowFacts, ShownSet, render_projection, render_show
from gendistill.evaluate.report.words import RANDOM_LABEL

__all__ = [
    "RANDOM_LABEL",
    "RunFacts",
    "Sheet",
    "ShowFacts",
    "ShownSet",
    "render",
    "render_projection",
    "render_show",
]
