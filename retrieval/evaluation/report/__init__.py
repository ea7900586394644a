"""Look inside a scored run: a page that needs no network and no other file, and its figures.

    python evaluate.py --checkpoint runs/tap/best --report DIR [--against runs/mean/best]

    DIR/report.html    metrics with intervals, ranks, hardest queries with sound and attention,
                       metrics by lengths and keywords, near-duplicates
    DIR/report.json    the same figures

figures.py, near_duplicates.py and against.py compute the figures, media.py makes sounds and
pictures, and page.py fills in page.html with page.css and page.js.
"""

from retrieval.evaluation.report.against import Against
from retrieval.evaluation.report.writing import write_report

__all__ = ["Against", "write_report"]
