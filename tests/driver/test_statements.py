"""What statements leave, as judged and in reality; the long form is a command."""

from __future__ import annotations

import pytest
from statements import explore

from flask_mysqlpool.testing import LocalServer


@pytest.mark.parametrize("tells", [True, False], ids=["tells", "silent"])
def test_no_statement_leaves_what_it_is_not_said_to(
    server: LocalServer, tells: bool
) -> None:
    findings = explore(server, count=120, seed=22, tells=tells)

    print(findings)
    assert not findings.misses, findings
    # And enough has been tried, and has left something.
    assert findings.executed >= 80, findings
    assert findings.failed < findings.executed / 3, findings
    assert findings.effects["SESSION"] >= 20, findings
    assert findings.effects["WRITES"] >= 8, findings
    assert findings.effects["TRANSACTION"] >= 8, findings
    assert findings.effects["ENDS"] >= 8, findings
