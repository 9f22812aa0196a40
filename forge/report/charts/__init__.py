"""The charts of a report, drawn as SVG of our own; ``docs/report_page.md`` says why."""

from forge.report.charts.selection import all_charts, groups, narrow_groups

__all__ = ["all_charts", "groups", "narrow_groups"]
