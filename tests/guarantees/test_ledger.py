"""The books balance, whatever breaks while they are kept."""

from __future__ import annotations

import os

import pytest
from certificates import Authority
from conftest import MakeServer
from ledger import MANNERS, OPTIONS, Saboteur, keep_ledger

#: Ten for each fault; a run by hand may have more.
TRANSFERS = int(os.environ.get("TRANSFERS", "5000"))


@pytest.mark.timeout(400)
def test_no_transfer_is_lost_doubled_or_halved_whatever_breaks(
    make_server: MakeServer,
) -> None:
    figures = keep_ledger(make_server(options=OPTIONS), transfers=TRANSFERS)

    print(figures)
    assert figures.damage == 0, figures
    assert figures.created == 0, figures
    # And something has been tried, and has gone wrong.
    assert figures.transfers >= TRANSFERS, figures
    assert figures.faults.total() >= 500, figures
    assert figures.faults.keys() == {*Saboteur.FREQUENT, "restart"}
    assert figures.outcomes["acknowledged"] > figures.transfers * 0.8, figures
    assert 0 < figures.unknown_stored < figures.outcomes["unknown"], figures
    assert figures.errors["ConnectionLost 2006"] > 0, figures
    assert figures.errors["OperationalError 1213"] > 0, figures
    assert figures.manners.keys() == {str(manner) for manner in MANNERS["all"]}
    assert figures.repeated > 0, figures


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["mariadb"], indirect=True, scope="session")
def test_the_books_balance_over_tls(
    make_server: MakeServer, authority: Authority
) -> None:
    """As they do above on MySQL, which makes certificates for itself."""
    server = make_server(options=OPTIONS)
    authority.certify(server)
    figures = keep_ledger(
        server,
        manners="by hand",
        transfers=1_000,
        faults=60,
        restarts=1,
        ssl_mode="REQUIRED",
    )

    print(figures)
    assert (figures.damage, figures.created, figures.untried) == (0, 0, 0), figures
    assert figures.outcomes["acknowledged"] > figures.transfers * 0.8, figures


@pytest.mark.timeout(120)
def test_the_same_ledger_shows_the_halves_that_a_plain_pool_makes(
    make_server: MakeServer,
) -> None:
    """Without this, nobody would know that the test above can fail."""
    figures = keep_ledger(
        make_server(options=OPTIONS),
        "dbutils",
        transfers=1_000,
        faults=80,
        restarts=0,
        manners="plain",
    )

    print(figures)
    assert figures.lost + figures.duplicated + figures.halved > 0, figures
