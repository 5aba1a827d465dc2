"""A panel for Flask-DebugToolbar, with the statements of the request.

Add ``"flask_mysqlpool.contrib.debugtoolbar.RadarPanel"`` to ``DEBUG_TB_PANELS``.
"""

from __future__ import annotations

from flask import current_app
from flask_debugtoolbar.panels import DebugPanel

from ..extension.radar import OFTEN, is_attached, seen

#: The toolbar's environment escapes what is inserted.
_TEMPLATE = """\
<p>{{ seen.statements }} statements in {{ ms(seen.seconds) }} ms,
waited {{ ms(seen.waited) }} ms for connections.
{%- if seen.queries|length < seen.statements %} These are the last.{% endif %}</p>
<table>
<thead><tr><th>ms</th><th>Rows</th><th>Statement</th><th>Line</th><th></th></tr></thead>
<tbody>
{%- for query in seen.queries %}
<tr class="{{ loop.cycle('flDebugOdd', 'flDebugEven') }}">
<td>{{ ms(query.duration) }}</td>
<td>{{ "?" if query.rows is none else query.rows }}</td>
<td><code>{{ query.statement }}</code>
{%- if query.parameters is not none %} <code>{{ query.parameters|printable }}</code>
{%- endif %}</td>
<td>{{ query.location }}</td>
<td>{% if query.no_index %}no index {% endif %}
{%- if seen.times(query.statement) > often %}
{{- seen.times(query.statement) }} times{% endif %}</td>
</tr>
{%- endfor %}
</tbody>
</table>
"""


class RadarPanel(DebugPanel):
    """Lists the statements that the request has executed with cursors."""

    name = "MySQLPool"

    @property
    def has_content(self) -> bool:  # type: ignore[override]
        return is_attached(current_app)

    def nav_title(self) -> str:
        return "MySQL"

    def nav_subtitle(self) -> str:
        found = seen()
        if found is None or not self.has_content:
            return "MYSQLPOOL_RADAR is off"
        return f"{found.statements} statements"

    def title(self) -> str:
        return "MySQL statements"

    def url(self) -> str:
        return ""

    def content(self) -> str:
        template = self.jinja_env.from_string(_TEMPLATE)
        return template.render(seen=seen(), often=OFTEN, ms=_milliseconds)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
