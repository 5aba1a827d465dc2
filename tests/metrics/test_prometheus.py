"""What Prometheus scrapes: one worker answers for all, and nothing goes back."""

from __future__ import annotations

import fcntl
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask
from flask.testing import FlaskCliRunner
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pymysql.err import OperationalError
from records import heard_from
from websites import BOARD, PATIENCE, Load, Site, good_site

from flask_mysqlpool import PoolTimeout, get_db
from flask_mysqlpool.metrics.prometheus import PoolCollector
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.workers.exited import KEPT, total
from flask_mysqlpool.workers.overview import totals
from flask_mysqlpool.workers.records import TURN
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

Samples = dict[tuple[Any, ...], float]


def parse(text: str) -> Samples:
    """Every sample, by its name and its labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(app: Flask) -> Samples:
    registry = CollectorRegistry()
    registry.register(PoolCollector(app))
    return parse(generate_latest(registry).decode())


def use(app: Flask) -> None:
    db = extension(app)
    with app.app_context(), db.connection(), get_db() as second:
        with pytest.raises(PoolTimeout):
            db.connection(timeout=0)
        second.close()
        db.reset()


@pytest.mark.parametrize("published", [True, False])
def test_all_metrics_of_a_worker_are_there(make_app: MakeApp, published: bool) -> None:
    settings = {} if published else {"STATUS_DIR": False}
    app = make_app(MAX_SIZE=2, BINDS={"reports": {}}, **settings)
    use(app)

    def value(name: str, **labels: str) -> float | None:
        labels = {"pool": "shop", **labels}
        return scrape(app).get((f"mysqlpool_{name}", *sorted(labels.items())))

    until(lambda: value("discarded_total", reason="invalidated") == 2)
    assert value("connections", state="idle") == 0
    assert value("connections", state="in_use") == 0
    assert value("connections_max") == 2
    assert value("waiting") == 0
    assert value("workers") == 1
    assert value("checkouts_total") == 2
    assert value("timeouts_total") == 1
    assert value("opened_total") == 2
    for name, count in {"wait": 2, "use": 2, "create": 2}.items():
        assert value(f"{name}_seconds_count") == count
        assert value(f"{name}_seconds_bucket", le="+Inf") == count
        assert value(f"{name}_seconds_sum") > 0  # type: ignore[operator]
    assert value("checkouts_total", pool="shop/reports") in (
        0,
        None if not published else 0,
    )


@pytest.mark.one_engine
@pytest.mark.parametrize("published", [True, False])
def test_it_is_told_when_a_connect_last_failed(
    make_app: MakeApp, server: LocalServer, proxy: FaultProxy, published: bool
) -> None:
    settings = {} if published else {"STATUS_DIR": False}
    app = make_app(URL=server.url_at(proxy.port), **settings)
    db, began = extension(app), time.time()
    name = "mysqlpool_last_connect_failure_timestamp_seconds", ("pool", "shop")
    with app.app_context():
        db.connection().close()
        assert scrape(app)[name] == 0
        proxy.refuse()
        db.reset()
        with pytest.raises(OperationalError, match="2003"):
            db.connection()

        until(lambda: scrape(app)[name] >= began)


def test_to_be_registered_is_no_reason_to_look(make_app: MakeApp) -> None:
    app = make_app()
    CollectorRegistry(auto_describe=True).register(PoolCollector(app))

    with app.app_context():
        assert not os.path.exists(app.config["MYSQLPOOL_STATUS_DIR"])


def test_what_a_closed_pool_has_counted_stays_counted(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2)
    for _ in range(2):
        use(app)
        with app.app_context():
            extension(app).close_pool()

    samples = scrape(app)
    assert samples["mysqlpool_checkouts_total", ("pool", "shop")] == 4
    assert samples["mysqlpool_wait_seconds_count", ("pool", "shop")] == 4
    assert samples["mysqlpool_workers", ("pool", "shop")] == 0


def test_a_scrape_fails_while_the_folder_cannot_be_read(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2)
    use(app)
    path = app.config["MYSQLPOOL_STATUS_DIR"]
    checkouts = "mysqlpool_checkouts_total", ("pool", "shop")
    until(lambda: scrape(app).get(checkouts) == 2)

    os.chmod(path, 0o770)
    with pytest.raises(OSError, match="can be written to by others"):
        scrape(app)
    os.chmod(path, 0o700)
    with open(f"{path}/past.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"keeps it locked.*past\.lock"):
            scrape(app)

    assert scrape(app)[checkouts] == 2


def test_no_sum_is_told_while_a_worker_cannot_be_read(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2)
    use(app)
    other = StatusFile(StatusDir(app.config["MYSQLPOOL_STATUS_DIR"]))
    other.write({"app": "shop", "bind": "default", "version": "another"})

    assert scrape(app) == {("mysqlpool_readable",): 0}
    other.remove()
    assert scrape(app)["mysqlpool_readable",] == 1


def test_a_scrape_does_not_wait_for_long_for_whoever_counts(make_app: MakeApp) -> None:
    app = make_app()
    heard_from(app, 0).remove()
    lock = Path(app.config["MYSQLPOOL_STATUS_DIR"], "past.lock")
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            scrape(app)

    # Less than Prometheus waits for; orders have more patience.
    assert time.monotonic() - began < TURN * 0.8


def test_pools_of_one_name_are_added_up(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2, BINDS={"reports": {"NAME": "shop", "MAX_SIZE": 3}})
    db = extension(app)
    with app.app_context(), db.connection(), db.connection("reports"):
        checkouts = "mysqlpool_checkouts_total", ("pool", "shop")
        until(lambda: scrape(app).get(checkouts) == 2)

    registry = CollectorRegistry()
    registry.register(PoolCollector(app))
    lines = generate_latest(registry).decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))
    samples = scrape(app)
    assert samples["mysqlpool_connections_max", ("pool", "shop")] == 5
    assert samples["mysqlpool_workers", ("pool", "shop")] == 1


def test_pools_of_one_name_are_added_up_where_nothing_is_published(
    make_app: MakeApp,
) -> None:
    binds = {"reports": {"NAME": "shop", "MAX_SIZE": 3}}
    app = make_app(MAX_SIZE=2, BINDS=binds, STATUS_DIR=False)
    db = extension(app)
    with app.app_context():
        for bind in "default", "reports":
            db.connection(bind).close()
        db.pool().pause()
        until(lambda: db.stats("reports").create_seconds[-1])
        samples = scrape(app)
        db.pool().resume()

    pool = "pool", "shop"
    assert samples["mysqlpool_checkouts_total", pool] == 2
    assert samples["mysqlpool_use_seconds_count", pool] == 2
    assert samples["mysqlpool_connections_max", pool] == 5
    assert samples["mysqlpool_paused", pool] == 1
    assert samples["mysqlpool_workers", pool] == 1


def test_a_worker_of_another_version_is_not_left_out_of_sums(make_app: MakeApp) -> None:
    app = make_app()
    other = heard_from(app, 0, checkouts=None)
    assert scrape(app) == {("mysqlpool_readable",): 0}
    other.remove()
    assert scrape(app)["mysqlpool_readable",] == 1


def test_workers_of_one_process_id_are_counted_by_their_site(make_app: MakeApp) -> None:
    app = make_app()
    sheets = [heard_from(app, 0, pid=1, site=site) for site in ("1:a", "1:b", "1:b")]

    assert scrape(app)["mysqlpool_workers", ("pool", "shop")] == 2
    for sheet in sheets:
        sheet.remove()


def test_labels_are_cut_and_what_is_equal_then_is_added_up(make_app: MakeApp) -> None:
    app = make_app(NAME="\u202e" + "y" * 200)
    reasons = {"z" * 200: 1, "z" * 300: 2, "\x1b[2J": 4}
    sheet = heard_from(app, 0, discarded_by_reason=reasons)
    name = "pool", r"\u202e" + "y" * 99 + "…"

    def discarded(reason: str) -> float:
        return scrape(app)["mysqlpool_discarded_total", name, ("reason", reason)]

    assert discarded("z" * 100 + "…") == 3 and discarded(r"\x1b[2J") == 4
    sheet.remove()


@pytest.mark.parametrize("bind", ["default", "reports"])
def test_one_of_several_pools_of_a_name_is_paused(make_app: MakeApp, bind: str) -> None:
    app = make_app(BINDS={"reports": {"NAME": "shop"}})
    run = FlaskCliRunner(app).invoke(args=["mysqlpool", "pause", "--bind", bind])

    assert run.exit_code == 0 and scrape(app)["mysqlpool_paused", ("pool", "shop")] == 1


def test_a_pause_is_a_metric(make_app: MakeApp) -> None:
    app = make_app()
    paused = "mysqlpool_paused", ("pool", "shop")
    before = scrape(app)[paused]
    assert FlaskCliRunner(app).invoke(args=["mysqlpool", "pause"]).exit_code == 0

    assert (before, scrape(app)[paused]) == (0, 1)


# Under gunicorn


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with good_site(tmp_path, monkeypatch) as site:
        yield site


def scrape_site(site: Site) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.port()}/metrics") as answer:
        return parse(answer.read().decode())


def go_on(load: Load, requests: int) -> None:
    goal = load.requests + requests
    until(lambda: load.requests >= goal, PATIENCE)


def test_one_scrape_is_the_sum_of_all_workers(site: Site) -> None:
    load = Load(site.port())
    with load.running():
        until(lambda: len(load.workers) == BOARD.workers, PATIENCE)
        go_on(load, 100)
    fleet = site.fleet()

    def at_rest() -> bool:
        workers = fleet.workers()["default"]
        return totals(workers)["checkouts"] == load.requests

    until(at_rest, PATIENCE)
    pool = ("pool", "sites")
    uses = "mysqlpool_use_seconds_count", pool
    until(lambda: scrape_site(site)[uses] == load.requests, PATIENCE)
    counts = totals(fleet.workers()["default"])
    samples = scrape_site(site)
    assert samples["mysqlpool_checkouts_total", pool] == counts["checkouts"]
    assert samples["mysqlpool_opened_total", pool] == counts["opened"]
    for state in ("idle", "in_use", "connecting"):
        key = "mysqlpool_connections", pool, ("state", state)
        assert samples[key] == counts[state]
    assert samples["mysqlpool_workers", pool] == BOARD.workers


def test_no_counter_goes_back_when_a_worker_is_killed(site: Site) -> None:
    load = Load(site.port())
    seen: list[Samples] = []
    with load.running():
        until(lambda: len(load.workers) == BOARD.workers, PATIENCE)
        for victim in list(load.workers):
            go_on(load, 100)
            seen.append(scrape_site(site))
            os.kill(victim, signal.SIGKILL)
            seen.append(scrape_site(site))
            go_on(load, 300)
            seen.append(scrape_site(site))

    growing = [
        key for key in seen[0] if key[0].endswith(("_total", "_count", "_bucket"))
    ]
    assert growing
    for before, after in zip(seen, seen[1:], strict=False):
        assert [key for key in growing if after[key] < before[key]] == []
    checkouts = "mysqlpool_checkouts_total", ("pool", "sites")
    assert seen[-1][checkouts] >= seen[0][checkouts] + 900


# What the dead have counted


@pytest.fixture
def board(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "board")


KEY = "shop/default u@db:3306"


def sheet(**counts: Any) -> dict[str, Any]:
    about = {"app": "shop", "bind": "default", "user": "u", "server": "db:3306"}
    return {**about, "site": "1:2", **counts}


def test_counts_of_all_forms_are_added_up() -> None:
    assert total(
        [
            {"checkouts": 1, "wait": [1, 2, 0.5]},
            {"checkouts": 2, "discarded_by_reason": {"idle": 1}},
            {"wait": [0, 1, 0.5], "discarded_by_reason": {"idle": 2, "dead": 1}},
        ]
    ) == {
        "checkouts": 3,
        "wait": [1, 3, 1.0],
        "discarded_by_reason": {"idle": 3, "dead": 1},
    }


def test_a_sheet_is_buried_once_however_often_that_is_tried(board: StatusDir) -> None:
    live = StatusFile(board)
    live.write(sheet(checkouts=0))
    dead = StatusFile(board)
    dead.write(sheet(checkouts=5))
    path = Path(board.path, f"{dead.id}.worker")
    content = path.read_bytes()
    dead._close()
    for _ in range(3):
        _, past = board.read_with_exited()
        # As if the reader had been killed before it could remove the sheet.
        path.write_bytes(content)
        path.chmod(0o600)

    assert past.counts(KEY) == {"checkouts": 5}


@pytest.mark.one_engine
def test_counts_stay_when_workers_of_another_parent_exit(make_app: MakeApp) -> None:
    """As those of RQ, which forks a process for each job."""
    app = make_app()
    web = heard_from(app, 0, site="web", checkouts=100, timeouts=3)
    checkouts = "mysqlpool_checkouts_total", ("pool", "shop")
    seen = [scrape(app)[checkouts]]
    for _ in range(2):
        job = heard_from(app, 0, site="jobs", checkouts=50)
        seen.append(scrape(app)[checkouts])
        job.remove()
        seen.append(scrape(app)[checkouts])
    web.remove()

    assert seen == [100, 150, 150, 200, 200]
    assert scrape(app)[checkouts] == 200


def test_of_pools_without_workers_the_last_ones_are_kept(board: StatusDir) -> None:
    for user in map(str, [0, *range(KEPT), 0, KEPT]):
        mortal = StatusFile(board)
        mortal.write(sheet(user=user, checkouts=1))
        mortal.remove()

    _, past = board.read_with_exited()
    pools = past.content()["pools"]
    assert len(pools) == KEPT
    assert past.counts("shop/default 0@db:3306") == {"checkouts": 3}
    assert past.counts("shop/default 1@db:3306") == {}


def test_what_is_damaged_counts_nothing_and_is_in_nobodys_way(board: StatusDir) -> None:
    mortal = StatusFile(board)
    mortal.write(sheet(checkouts=1))
    name = f"{mortal.id}.worker"
    os.truncate(os.path.join(board.path, name), 5)
    mortal._close()
    Path(board.path, "past").write_text("garbage")

    reading, past = board.read_with_exited()

    assert reading.records == [] and name not in os.listdir(board.path)
    assert past.counts(KEY) == {}


def test_nothing_is_kept_of_sheets_that_are_gone(board: StatusDir) -> None:
    for number in range(20):
        mortal = StatusFile(board)
        mortal.write(sheet(checkouts=number))
        mortal.remove()

    _, past = board.read_with_exited()
    assert len(past.content()["buried"]) <= 1
    assert past.counts(KEY) == {"checkouts": sum(range(20))}
    assert list(past.content()["pools"]) == [KEY]
