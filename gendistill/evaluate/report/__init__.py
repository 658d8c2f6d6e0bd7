"""The run report: one HTML file with its pictures and curves inside, for any browser without a network.

Takes plain data (``RunFacts``, gathered by stages/report.py) and gives text. Accuracies are fractions here and per cent
on the page; differences are in points, that is per cent of the test images.
"""

from gendistill.evaluate.report.page import RunFacts, render
from gendistill.evaluate.report.words import RANDOM_LABEL

__all__ = ["RANDOM_LABEL", "RunFacts", "render"]
