"""Pages: the report of runs and evaluations, and a look inside sets. One HTML file each, that needs no network.

They take plain data (``ReportFacts``, ``ShowFacts``, gathered by stages/) and give text. Accuracies are fractions here
and per cent on the page; differences are in points, that is per cent of the test images.
"""

from gendistill.evaluate.report.facts import Look, ReportFacts, RunFacts
from gendistill.report.page import render
from gendistill.report.export import as_csv, as_json
from gendistill.report.show import Sheet, ShowFacts, ShownSet, render_projection, render_show
from gendistill.report.formatting import RANDOM_LABEL

__all__ = [
    "RANDOM_LABEL",
    "Look",
    "ReportFacts",
    "RunFacts",
    "Sheet",
    "ShowFacts",
    "ShownSet",
    "as_csv",
    "as_json",
    "render",
    "render_projection",
    "render_show",
]
