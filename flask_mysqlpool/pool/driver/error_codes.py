"""Error numbers of servers and of PyMySQL, by meaning; the back-off after errors."""

from __future__ import annotations

import random

from pymysql.constants import CR, ER

#: The server has closed the connection, or will.
LOST = frozenset({0, 1053, 1927, 2006, 2013, 2014, 2045, 2055, 4031})

#: The server accepts no statements at present: a Galera node that joins or leaves its
#: cluster (1047), a ProxySQL without a usable server (9001).
NOT_READY = frozenset({1047, 9001})

#: The server has become a replica. These have other causes, too, as a write in a READ
#: ONLY transaction, so the server is then asked for its role.
READ_ONLY = frozenset({1290, 1792, 1836, 1874})

#: The server has usually rolled back the whole transaction: a deadlock, an outdated
#: snapshot (MariaDB), a full lock table, a conflict in a group (3101). They prove
#: nothing, because a trigger can signal the same number.
ROLLED_BACK = frozenset({ER.LOCK_DEADLOCK, ER.CHECKREAD, ER.LOCK_TABLE_FULL, 3101})

#: A connect may succeed later: the server is out of reach, full, or not ready.
UNAVAILABLE = NOT_READY | {
    *(CR.CR_CONNECTION_ERROR, CR.CR_CONN_HOST_ERROR, CR.CR_UNKNOWN_HOST),
    *(CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, ER.SERVER_SHUTDOWN),
    *(ER.CON_COUNT_ERROR, ER.TOO_MANY_USER_CONNECTIONS, ER.USER_LIMIT_REACHED),
}

#: A transaction that was rolled back may be repeated.
CONFLICTS = ROLLED_BACK | {ER.LOCK_WAIT_TIMEOUT}

#: Errors of a login that every host would give: account, database, or client set-up.
SAME_ON_ALL_HOSTS = frozenset(
    {
        *(ER.ACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, ER.BAD_DB_ERROR),
        *(1698, 1862),  # no password, or an expired one
        # An account that is locked (MySQL, MariaDB), or locked after wrong passwords.
        *(3118, 4151, 3955),
        CR.CR_AUTH_PLUGIN_CANNOT_LOAD,
    }
)

#: Errors of a set-up that concern its host; another host may accept the session.
HOST_ERRORS = (
    LOST
    | NOT_READY
    | {
        *(ER.CON_COUNT_ERROR, ER.SERVER_SHUTDOWN, ER.HOST_IS_BLOCKED),
        *(ER.HOST_NOT_PRIVILEGED, ER.TOO_MANY_USER_CONNECTIONS, ER.USER_LIMIT_REACHED),
        3032,  # offline_mode
    }
)

#: Errors that do not depend on the statement, but on the account, the server or another
#: session: resources and limits (1021, 1037, 1041, 1203, 1226), a connection or server
#: that ends, an interrupted statement (1317, 1969, 3024), locks of others (1205, 1213,
#: 3101, 3572), a password to be changed (1820, 1862), a locked account.
NOT_OF_A_STATEMENT = (
    NOT_READY
    | CONFLICTS
    | LOST
    | {1021, 1037, 1040, 1041, 1158, 1159, 1160, 1161, 1203, 1226, 1317, 1820, 1862}
    | {1969, 3024, 3032, 3118, 3159, 3168, 3169, 3572, 4151}
)


def pause_after(failures: int, first: float, longest: float) -> float:
    """Return the seconds to pause after ``failures`` in a row: doubling, jittered."""
    pause = min(first * 2.0 ** min(failures - 1, 99), longest)
    return pause * random.uniform(0.5, 1.0)
