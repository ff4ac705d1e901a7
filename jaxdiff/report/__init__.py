"""Results to one self-contained HTML page, and to the short table of the terminal.

`write` needs nothing but the contents of results.json; the page holds every number it shows as JSON
and opens from a file, without a network.
"""

from jaxdiff.report.findings import Finding, findings
from jaxdiff.report.page import write
from jaxdiff.report.schema import check
from jaxdiff.report.summary import summary

__all__ = ["Finding", "check", "findings", "summary", "write"]
