"""A ledger kept through a pool while everything breaks that can.

Threads move money between accounts, as a naive user would write it, and note for each
transfer what they were told about it. Meanwhile a saboteur kills connections, cuts,
stalls and restarts what lies between them and their data. Afterwards the books are
compared with what the threads were told. Nothing here is a test; as a program it
prints its figures::

    python tests/ledger.py --pool dbutils --engine mysql --transfers 2000
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pymysql
from dbutils.pooled_db import PooledDB
from pymysql.constants import CLIENT
from pymysql.err import Error, MySQLError

from flask_mysqlpool import CommitUnknown, ConnectionLost, Pool, PoolConfig
from flask_mysqlpool.pool.transaction import run_in_transaction, transaction
from flask_mysqlpool.testing import FaultProxy, LocalServer

ACCOUNTS, INITIAL = 24, 1000
WORKERS, CONNECTIONS = 10, 4
#: For the server: torn pages would be the fault of kill -9, not that of a pool.
OPTIONS = ("--innodb-doublewrite=1",)
#: Seconds until a reply is given up, in the one pool; the other has patience.
READ_TIMEOUT, PATIENCE = 0.3, 5.0
#: What PyMySQL says when the server is gone, and applications look for.
GONE = (0, 2006, 2013)

POSTING = (
    "UPDATE account SET balance = balance + %s, postings = postings + 1 WHERE id = %s"
)
ENTRY = "INSERT INTO journal (transfer, source, target, amount) VALUES (%s, %s, %s, %s)"
#: Likewise, but an error if the statement before it has changed nothing.
ENTRY_IF_POSTED = ENTRY.replace(
    "VALUES (%s,", "VALUES (IF(ROW_COUNT() = 1, %s, (SELECT 1 UNION SELECT 2)),"
)
#: Of the entries, those that are refused by a trigger that calls it a deadlock.
REFUSED = 0.02

Run = Callable[..., tuple[tuple[Any, ...], ...]]
Execute = Callable[..., Any]
Post = Callable[[Any], None]


@dataclass
class Transfer:
    """One transfer, and what the application was told about it."""

    number: int
    source: int
    target: int
    amount: int
    outcome: str = "failed"
    error: str = ""
    manner: str = ""
    #: Of run_in_transaction.
    attempts: int = 0

    @property
    def row(self) -> tuple[int, int, int, int]:
        return self.number, self.source, self.target, self.amount


@dataclass
class Figures:
    """What came of it."""

    pool: str
    engine: str
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    #: The transfers that were acknowledged, by manner.
    manners: Counter[str] = field(default_factory=Counter)
    #: What run_in_transaction has called again.
    repeated: int = 0
    #: Of the unknown ones, how many are in the books.
    unknown_stored: int = 0
    #: Acknowledged, and not in the journal.
    lost: int = 0
    #: In the journal more than once.
    duplicated: int = 0
    #: In the journal, although they failed before their commit.
    undead: int = 0
    #: Postings without their journal entry, or the other way round (at least).
    halved: int = 0
    #: By which all accounts together differ from what was there at first.
    created: int = 0
    #: Of the transfers wanted, those that nobody got round to.
    untried: int = 0
    discarded: Counter[str] = field(default_factory=Counter)

    @property
    def transfers(self) -> int:
        return self.outcomes.total()

    @property
    def damage(self) -> int:
        return self.lost + self.duplicated + self.undead + self.halved

    def __str__(self) -> str:
        told = ", ".join(f"{n} {what}" for what, n in sorted(self.outcomes.items()))
        return "\n".join(
            [
                f"{self.pool} on {self.engine}: {self.transfers} transfers"
                f" in {self.seconds:.1f} s: {told} ({self.unknown_stored} stored)",
                f"  {self.faults.total()} faults: {_listed(self.faults)}",
                f"  errors: {_listed(self.errors)}",
                f"  discarded: {_listed(self.discarded)}",
                f"  lost {self.lost}, duplicated {self.duplicated},"
                f" halved {self.halved}, undead {self.undead},"
                f" total off by {self.created}; {self.repeated} run again",
            ]
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"


# The application: how a transfer is sent


def by_statements(connection: Any, transfer: Transfer, execute: Execute) -> None:
    with connection.cursor() as cursor:
        for account, amount in (
            (transfer.source, -transfer.amount),
            (transfer.target, transfer.amount),
        ):
            if execute(cursor, POSTING, (amount, account)) == 0:
                raise _NotPosted
        execute(cursor, ENTRY, transfer.row)


def by_executemany(connection: Any, transfer: Transfer, execute: Execute) -> None:
    """Change both accounts by one call, which a block sends in one piece."""
    rows = [(-transfer.amount, transfer.source), (transfer.amount, transfer.target)]
    with connection.cursor() as cursor:
        if cursor.executemany(POSTING, rows) != 2:
            raise _NotPosted
        execute(cursor, ENTRY, transfer.row)


def by_trigger(connection: Any, transfer: Transfer, execute: Execute) -> None:
    with connection.cursor() as cursor:
        execute(
            cursor,
            "INSERT INTO wish (transfer, source, target, amount)"
            " VALUES (%s, %s, %s, %s)",
            transfer.row,
        )


def by_procedure(connection: Any, transfer: Transfer, execute: Execute) -> None:
    with connection.cursor() as cursor:
        execute(cursor, "CALL post(%s, %s, %s, %s)", transfer.row)


def by_unread_results(connection: Any, transfer: Transfer, execute: Execute) -> None:
    """Call a procedure that fails, if it does, after its first result."""
    execute(connection.cursor(), "CALL post_and_talk(%s, %s, %s, %s)", transfer.row)


def by_several(connection: Any, transfer: Transfer, execute: Execute) -> None:
    """Send three statements as one text, and leave their results unread."""
    posted = execute(
        connection.cursor(),
        f"{POSTING}; {POSTING}; {ENTRY_IF_POSTED}",
        (
            *(-transfer.amount, transfer.source),
            *(transfer.amount, transfer.target),
            *transfer.row,
        ),
    )
    if posted == 0:
        raise _NotPosted


def by_committing(connection: Any, transfer: Transfer, execute: Execute) -> None:
    """Call a procedure that begins and commits a transaction of its own."""
    # The procedure may have committed, whatever the call raises.
    transfer.outcome = "unknown"
    with connection.cursor() as cursor:
        cursor.execute("CALL post_and_commit(%s, %s, %s, %s)", transfer.row)
        while cursor.nextset():
            pass
    transfer.outcome = "acknowledged"


def plainly(cursor: Any, *statement: Any) -> Any:
    return cursor.execute(*statement)


def stubbornly(cursor: Any, *statement: Any) -> Any:
    """Go on after a lost connection as if it were there."""
    try:
        return cursor.execute(*statement)
    except MySQLError as error:
        if error.args[0] not in GONE and not isinstance(error, ConnectionLost):
            raise


def once_more(cursor: Any, *statement: Any) -> Any:
    """Apply the usual remedy for error 2006: ping, and execute again."""
    try:
        return cursor.execute(*statement)
    except MySQLError as error:
        if error.args[0] not in GONE and not isinstance(error, ConnectionLost):
            raise
        with suppress(Error):
            cursor.connection.ping(reconnect=True)
        return cursor.execute(*statement)


def once_more_after_a_conflict(cursor: Any, *statement: Any) -> Any:
    """Repeat the statement alone, where the transaction may have been rolled back."""
    try:
        return cursor.execute(*statement)
    except MySQLError as error:
        if error.args[0] not in (1205, 1213):
            raise
        return cursor.execute(*statement)


# The application: how a transfer is begun and ended


def by_hand(connection: Any, transfer: Transfer, post: Post) -> None:
    post(connection)
    if transfer.outcome == "acknowledged":
        return
    # commit() may have been sent, whatever it raises other than this.
    transfer.outcome = "unknown"
    try:
        connection.commit()
    except ConnectionLost:
        transfer.outcome = "failed"
        raise
    transfer.outcome = "acknowledged"


def in_block(connection: Any, transfer: Transfer, post: Post) -> None:
    with _told(transfer), transaction(connection):
        post(connection)


def in_savepoints(connection: Any, transfer: Transfer, post: Post) -> None:
    """Post it, undo that, and post it again."""
    with _told(transfer), transaction(connection):
        with suppress(_Undo), transaction(connection):
            post(connection)
            raise _Undo
        with transaction(connection):
            post(connection)


def in_retries(connection: Any, transfer: Transfer, post: Post) -> None:
    def attempt(connection: Any) -> None:
        transfer.attempts += 1
        post(connection)

    with _told(transfer):
        run_in_transaction(connection, attempt, retries=3)


class _Undo(Exception):
    pass


class _NotPosted(Exception):
    """An UPDATE was answered, and has changed nothing.

    MariaDB 11.8 says so, and reports no error, when KILL QUERY hits one as it begins.
    """


@contextmanager
def _told(transfer: Transfer) -> Iterator[None]:
    try:
        yield
    except CommitUnknown:
        if transfer.outcome == "failed":
            transfer.outcome = "unknown"
        raise
    transfer.outcome = "acknowledged"


POSTS = (
    *(by_statements, by_executemany, by_trigger),
    *(by_procedure, by_unread_results, by_several),
)
BLOCKS = (in_block, in_savepoints, in_retries)
EXECUTES = (plainly, plainly, stubbornly, once_more)


@dataclass(frozen=True)
class Manner:
    """One way to write the application."""

    send: Callable[[Any, Transfer, Execute], None] = by_statements
    end: Callable[[Any, Transfer, Post], None] = by_hand
    execute: Execute = plainly

    def __str__(self) -> str:
        return f"{self.send.__name__} {self.end.__name__}"

    def move(self, connection: Any, transfer: Transfer) -> None:
        transfer.manner = str(self)
        self.end(connection, transfer, lambda c: self.send(c, transfer, self.execute))


#: Ways to write an application; that of the tutorials as often as all others.
MANNERS: dict[str, Sequence[Manner]] = {
    "plain": [Manner()],
    "by hand": [Manner(execute=execute) for execute in EXECUTES],
    "all": [
        *(Manner(execute=execute) for execute in EXECUTES for _ in range(17)),
        *(Manner(post, execute=execute) for post in POSTS[1:] for execute in EXECUTES),
        *(
            Manner(post, end, execute)
            for post in POSTS
            for end in BLOCKS
            for execute in (plainly, stubbornly)
        ),
        # A statement alone: of a procedure that fails, a part may be done.
        *(
            Manner(post, end, once_more_after_a_conflict)
            for post in (by_statements, by_executemany, by_trigger)
            for end in BLOCKS
        ),
        *(Manner(by_committing, end) for end in (by_hand, in_block, in_retries)),
        *(Manner(by_committing, in_retries) for _ in range(4)),
    ],
}


class Bank:
    """The threads that make transfers, and their memory of them."""

    def __init__(
        self,
        pools: Sequence[Any],
        wanted: int,
        manners: Sequence[Manner],
        seed: int,
        workers: int = WORKERS,
    ) -> None:
        self.pools = pools
        self.manners = manners
        self.wanted = wanted
        self.made: list[Transfer] = []
        self.errors: Counter[str] = Counter()
        self.progress = threading.Condition()
        self._numbers = itertools.count(1)
        self._seed = seed
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(i,)) for i in range(workers)
        ]

    def open(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float) -> bool:
        """Wait until all is done; False if the time did not suffice."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _work(self, index: int) -> None:
        rng = random.Random(self._seed * 100 + index)
        pool = self.pools[index % len(self.pools)]
        while len(self.made) < self.wanted and not self._stop.is_set():
            self._serve_customer(pool, rng)

    def _serve_customer(self, pool: Any, rng: random.Random) -> None:
        done: list[Transfer] = []
        try:
            with pool.connection() as connection:
                # Now and then one that goes on with the same connection afterwards.
                while not done or (done[-1].outcome == "failed" and len(done) < 3):
                    done.append(self._new_transfer(rng))
                    self._try(connection, done[-1], rng)
        except Exception as error:
            with self.progress:
                self.errors[_name(error)] += 1
        with self.progress:
            self.made += done
            self.progress.notify_all()

    def _try(self, connection: Any, transfer: Transfer, rng: random.Random) -> None:
        try:
            rng.choice(self.manners).move(connection, transfer)
        except Exception as error:
            transfer.error = _name(error)
            with self.progress:
                self.errors[transfer.error] += 1
            if rng.random() < 0.5:
                raise
            connection.rollback()

    def _new_transfer(self, rng: random.Random) -> Transfer:
        source, target = rng.sample(range(1, ACCOUNTS + 1), 2)
        return Transfer(next(self._numbers), source, target, rng.randint(1, 9))


def _name(error: Exception) -> str:
    code = error.args[0] if error.args else ""
    name = type(error).__name__
    return f"{name} {code}" if isinstance(code, int) else name


# The saboteur


class Saboteur:
    """Injects faults, one after so many transfers, until it is told to stop."""

    def __init__(
        self, bank: Bank, server: LocalServer, proxy: FaultProxy, seed: int
    ) -> None:
        self.bank, self.server, self.proxy = bank, server, proxy
        self.faults: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._thread = threading.Thread(target=self._run)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._plan: list[str] = []
        self._spacing = 1.0
        self._root: pymysql.Connection[Any] | None = None
        #: The statements that a broken trigger has refused.
        self._refused = 0

    #: How often each is done, out of a hundred and some; the dear ones seldom.
    FREQUENT = {
        "kill_any": 14,
        "kill_busy": 22,
        "kill_query": 14,
        "kill_in_procedure": 22,
        "cut": 5,
        "reset": 5,
        "half_close": 4,
        "lose_reply": 18,
        "stall": 6,
        "pool_reset": 4,
        "refuse": 2,
        "time_out": 1,
        "swallow_replies": 1,
        "freeze": 1,
        "hold_row": 1,
    }

    def start(self, faults: int, restarts: int) -> None:
        kinds, weights = zip(*self.FREQUENT.items(), strict=True)
        plan = self._rng.choices(kinds, weights, k=max(faults - restarts, 0))
        for index in range(restarts):
            plan.insert((index + 1) * len(plan) // (restarts + 1), "restart")
        self._plan = plan
        self._spacing = self.bank.wanted / (len(plan) + 1)
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for index, kind in enumerate(self._plan):
                self._wait_for(int((index + 1) * self._spacing))
                if self._stop.is_set():
                    return
                getattr(self, f"_{kind}")()
                self.faults[kind] += 1
                self._mend_triggers()
        except BaseException as error:
            self._failure = error
        finally:
            if self._root is not None:
                self._root.close()

    def _mend_triggers(self) -> None:
        """Have MariaDB load the triggers again, if it has failed to.

        If KILL QUERY hits a session that is loading them, the table has a broken
        trigger until it is opened again, and refuses every INSERT by a 1064.
        """
        refused = self.bank.errors["ProgrammingError 1064"]
        if refused > self._refused:
            self._refused = refused
            self._sql("FLUSH TABLES")

    def _wait_for(self, transfers: int) -> None:
        """Let some work be done in between, or a moment pass in which none is."""
        with self.bank.progress:
            self.bank.progress.wait_for(
                lambda: len(self.bank.made) >= transfers or not self.bank.busy, 0.5
            )

    def _sql(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        if self._root is None:
            self._root = self.server.connect(database="test")
        with self._root.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def _kill(self, what: str, condition: str = "TRUE") -> None:
        threads = self._sql(
            "SELECT id FROM information_schema.processlist"
            f" WHERE user = '{self.server.user}' AND {condition}"
        ) or self._sql(
            "SELECT id FROM information_schema.processlist"
            f" WHERE user = '{self.server.user}'"
        )
        if threads:
            # It may have gone meanwhile.
            with suppress(MySQLError):
                self._sql(f"KILL {what} {self._rng.choice(threads)[0]}")

    def _kill_any(self) -> None:
        self._kill("CONNECTION")

    def _kill_busy(self) -> None:
        self._kill("CONNECTION", "command <> 'Sleep'")

    def _kill_query(self) -> None:
        self._kill("QUERY", "command <> 'Sleep'")

    def _kill_in_procedure(self) -> None:
        what = self._rng.choice(("CONNECTION", "QUERY"))
        self._kill(what, "state = 'User sleep'")

    def _cut(self) -> None:
        self.proxy.cut()

    def _reset(self) -> None:
        self.proxy.reset()

    def _half_close(self) -> None:
        self.proxy.half_close()

    def _lose_reply(self) -> None:
        self.proxy.cut_after_request()

    def _stall(self) -> None:
        self._during(self.proxy.hang, self.proxy.resume, 0.03)

    def _time_out(self) -> None:
        self._during(self.proxy.hang, self.proxy.resume, READ_TIMEOUT * 1.5)

    def _swallow_replies(self) -> None:
        # Those with patience wait for what will not come: they are cut off.
        self._during(self.proxy.drop_replies, self.proxy.resume, READ_TIMEOUT * 1.2)
        self.proxy.cut()

    def _refuse(self) -> None:
        self.proxy.refuse()
        self._during(self.proxy.cut, self.proxy.listen, 0.03)

    def _freeze(self) -> None:
        duration = self._rng.choice((0.03, READ_TIMEOUT * 1.3))
        self._during(self.server.pause, self.server.resume, duration)

    def _hold_row(self) -> None:
        """Long enough for a lock wait timeout."""
        account = self._rng.randint(1, ACCOUNTS)
        self._sql("BEGIN")
        # It may be the victim of a deadlock, or of others' waiting.
        with suppress(MySQLError):
            self._sql(f"SELECT * FROM account WHERE id = {account} FOR UPDATE")
            self._stop.wait(1.2)
        self._sql("ROLLBACK")

    def _pool_reset(self) -> None:
        for pool in self.bank.pools:
            if isinstance(pool, Pool):
                pool.reset()
                return
        self._kill_any()

    def _restart(self) -> None:
        assert self._root is not None or self._sql("SELECT 1")
        self._root, root = None, self._root
        self.server.kill()
        self.server.start()
        if root is not None:
            root.close()

    def _during(
        self, begin: Callable[[], None], end: Callable[[], None], seconds: float
    ) -> None:
        begin()
        try:
            self._stop.wait(seconds)
        finally:
            end()


# The books


def furnish(run: Run) -> None:
    run("DROP TABLE IF EXISTS account, journal, wish")
    run(
        "CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL,"
        " postings INT NOT NULL DEFAULT 0) ENGINE=InnoDB"
    )
    # Without a unique key on the number, or duplicates would not be stored.
    run(
        "CREATE TABLE journal (entry INT AUTO_INCREMENT PRIMARY KEY, transfer INT,"
        " source INT, target INT, amount INT) ENGINE=InnoDB"
    )
    run(
        "CREATE TABLE wish (transfer INT, source INT, target INT, amount INT)"
        " ENGINE=InnoDB"
    )
    _furnish_code(run)
    values = ", ".join(f"({i}, {INITIAL})" for i in range(1, ACCOUNTS + 1))
    run(f"INSERT INTO account (id, balance) VALUES {values}")


def _furnish_code(run: Run) -> None:
    """Create the triggers and the procedures that make transfers."""
    conflict = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213;"
    run(
        "CREATE TRIGGER refuse BEFORE INSERT ON journal FOR EACH ROW"
        f" BEGIN IF RAND() < {REFUSED} THEN {conflict} END IF; END"
    )
    new = "NEW.transfer", "NEW.source", "NEW.target", "NEW.amount"
    run(
        "CREATE TRIGGER grant_wish AFTER INSERT ON wish FOR EACH ROW"
        f" BEGIN {_transfer(*new)} END"
    )
    transfer, sleep = _transfer("n", "s", "t", "a"), "DO SLEEP(0.003);"
    for name, body in {
        "post": f"{transfer} {sleep}",
        "post_and_talk": f"SELECT 1; {transfer} SELECT 2;",
        "post_and_commit": f"START TRANSACTION; {transfer} COMMIT; {sleep}"
        f" IF RAND() < {REFUSED} THEN {conflict} END IF; SELECT 1;"
        f" IF RAND() < {REFUSED} THEN {conflict} END IF;",
    }.items():
        run(f"DROP PROCEDURE IF EXISTS {name}")
        run(f"CREATE PROCEDURE {name} (n INT, s INT, t INT, a INT) BEGIN {body} END")


def _transfer(number: str, source: str, target: str, amount: str) -> str:
    first, second = POSTING % (f"-{amount}", source), POSTING % (amount, target)
    return f"{first}; {second}; {ENTRY % (number, source, target, amount)};"


def audit(run: Run, made: Sequence[Transfer], figures: Figures) -> None:
    """Compare the books with what the application was told."""
    journal = run("SELECT transfer, source, target, amount FROM journal")
    accounts = run("SELECT id, balance, postings FROM account")
    entries = Counter(number for number, *_ in journal)
    for transfer in made:
        stored = entries[transfer.number] > 0
        figures.lost += transfer.outcome == "acknowledged" and not stored
        figures.undead += transfer.outcome == "failed" and stored
        figures.unknown_stored += transfer.outcome == "unknown" and stored
    figures.undead += len(entries.keys() - {transfer.number for transfer in made})
    figures.duplicated = sum(times - 1 for times in entries.values())
    figures.halved = _disagreements(journal, accounts)
    figures.created = sum(balance for _, balance, _ in accounts) - ACCOUNTS * INITIAL


def _disagreements(journal: Sequence[Any], accounts: Sequence[Any]) -> int:
    """How far the accounts are from what the journal says they should be."""
    postings, balances = Counter[int](), Counter[int]()
    for _, source, target, amount in journal:
        postings.update((source, target))
        balances[source] -= amount
        balances[target] += amount
    return sum(
        abs(posted - postings[account]) or int(balance != INITIAL + balances[account])
        for account, balance, posted in accounts
    )


# All of it


def our_pool(
    server: LocalServer, port: int, read_timeout: float, ssl_mode: str
) -> Pool:
    settings = {
        "URL": server.url_at(port),
        "NAME": "ledger",
        "MAX_SIZE": CONNECTIONS,
        "TIMEOUT": 5,
        "CONNECT_TIMEOUT": 2,
        "READ_TIMEOUT": read_timeout,
        "SSL_MODE": ssl_mode,
        "SETSESSION": ["SET innodb_lock_wait_timeout = 1"],
        "CONNECT_ARGS": {"client_flag": CLIENT.MULTI_STATEMENTS},
    }
    return Pool(PoolConfig.from_mapping(settings))


def plain_pool(
    server: LocalServer, port: int, read_timeout: float, ssl_mode: str
) -> PooledDB:
    return PooledDB(
        pymysql,
        maxconnections=CONNECTIONS,
        blocking=True,
        setsession=["SET innodb_lock_wait_timeout = 1"],
        host=server.host,
        port=port,
        user=server.user,
        password=server.password,
        database=server.database,
        connect_timeout=2,
        read_timeout=read_timeout,
        ssl_disabled=ssl_mode == "DISABLED",
    )


POOLS: dict[str, Callable[[LocalServer, int, float, str], Any]] = {
    "ours": our_pool,
    "dbutils": plain_pool,
}


def keep_ledger(
    server: LocalServer,
    pool: str = "ours",
    *,
    transfers: int = 10_000,
    faults: int = 520,
    restarts: int = 4,
    manners: str = "all",
    seed: int = 1,
    seconds: float = 300.0,
    ssl_mode: str = "PREFERRED",
) -> Figures:
    """Run it once, on a server that nobody else uses; :data:`OPTIONS` are for it."""
    figures = Figures(pool, server.engine)
    started = time.monotonic()
    run = _runner(server)
    furnish(run)
    with FaultProxy(server.host, server.port) as proxy:
        pools = [
            POOLS[pool](server, proxy.port, timeout, ssl_mode)
            for timeout in (READ_TIMEOUT, PATIENCE)
        ]
        bank = Bank(pools, transfers, MANNERS[manners], seed)
        saboteur = Saboteur(bank, server, proxy, seed)
        _let_them_at_it(bank, saboteur, (faults, restarts), seconds)
        for each in pools:
            figures.discarded.update(_discarded(each))
            each.close()
    _until_nobody_is_left(run, server.user)
    audit(run, bank.made, figures)
    figures.outcomes = Counter(transfer.outcome for transfer in bank.made)
    figures.manners = Counter(
        transfer.manner for transfer in bank.made if transfer.outcome == "acknowledged"
    )
    figures.repeated = sum(max(t.attempts - 1, 0) for t in bank.made)
    figures.errors, figures.faults = bank.errors, saboteur.faults
    figures.untried = max(transfers - figures.transfers, 0)
    figures.seconds = time.monotonic() - started
    return figures


def _let_them_at_it(
    bank: Bank, saboteur: Saboteur, plan: tuple[int, int], seconds: float
) -> None:
    bank.open()
    saboteur.start(*plan)
    try:
        finished = bank.close(seconds)
    finally:
        saboteur.finish()
    if not finished:
        raise RuntimeError("some thread is stuck in the pool")


def _discarded(pool: Any) -> dict[str, int]:
    return dict(pool.stats().discarded_by_reason) if isinstance(pool, Pool) else {}


def _runner(server: LocalServer) -> Run:
    def run(statement: str) -> tuple[tuple[Any, ...], ...]:
        connection = server.connect(database="test")
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return tuple(cursor.fetchall())
        finally:
            connection.close()

    return run


def _until_nobody_is_left(run: Run, user: str) -> None:
    """What the server has not noticed to be gone may still hold a transaction."""
    deadline = time.monotonic() + 20
    while _threads(run, user):
        if time.monotonic() > deadline:
            raise RuntimeError(f"sessions are left: {_threads(run, user)}")
        time.sleep(0.02)


def _threads(run: Run, user: str) -> tuple[Any, ...]:
    return run(f"SELECT * FROM information_schema.processlist WHERE user = '{user}'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", choices=POOLS, default="ours")
    parser.add_argument("--engine", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--transfers", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=520)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--manners", choices=MANNERS, default="all")
    parser.add_argument("--seed", type=int, default=1)
    modes = "DISABLED", "PREFERRED", "REQUIRED"
    parser.add_argument("--ssl-mode", choices=modes, default="PREFERRED")
    options = vars(parser.parse_args())
    if options["pool"] != "ours" and options["manners"] == "all":
        parser.error("--manners: only ours has blocks; 'by hand' and 'plain' have none")
    engine = options.pop("engine")
    root = os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT") if engine == "mysql" else None
    with LocalServer(engine=engine, root=root, options=OPTIONS) as server:
        figures = keep_ledger(server, **options)
    print(figures)
    raise SystemExit(1 if figures.damage or figures.untried else 0)


if __name__ == "__main__":
    main()
