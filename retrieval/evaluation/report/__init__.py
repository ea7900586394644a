"""Look inside a scored run: a page that needs no network and no other file, and the figures behind
it.

    python evaluate.py --checkpoint runs/tap/best --report DIR [--against runs/mean/best] [--report-queries 10]

    DIR/report.html    metrics with intervals, ranks, the hardest queries with sound and attention, what the score depends on, near-duplicates
    DIR/report.json    the same figures

figures.py, near_duplicates.py, against.py: what is said; media.py: sound and pictures; page.py with
page.html, page.css, page.js: how.
"""

from retrieval.evaluation.report.against import Against
from retrieval.evaluation.report.writing import write_report

__all__ = ["Against", "write_report"]
