"""The pages of people; each test starts with the first three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_app import create_app
from example_app.database import LONGEST_NAME, db, init_db
from flask_mysqlpool.testing import LocalServer

from .conftest import BROWSER, CURL, Browser

pytestmark = pytest.mark.usefixtures("mysql_rollback")

JOHN = {"id": 1, "first_name": "John", "last_name": "Bob"}
JANE = {"id": 2, "first_name": "Jane", "last_name": "Bob"}
MICHAEL = {"id": 3, "first_name": "Michael", "last_name": "Clark"}


@pytest.fixture(scope="module")
def app(mysql_server: LocalServer) -> Iterator[Flask]:
    """Create the table once, as each test is rolled back."""
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, "TESTING": True})
    with app.app_context():
        db.get_db().query("DROP TABLE IF EXISTS person")
        init_db()
    yield app
    with app.app_context():
        db.close_pool()


def names(client: FlaskClient) -> list[str]:
    people = client.get("/person/all").get_json()
    return [f"{person['first_name']} {person['last_name']}" for person in people]


def test_everybody_is_a_list_in_order(client: FlaskClient) -> None:
    response = client.get("/person/all", headers=CURL)
    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert response.get_json() == [JOHN, JANE, MICHAEL]
    assert response.text.startswith('[{"id":1,"first_name":"John","last_name":"Bob"}')


def test_the_first_is_one_object(client: FlaskClient) -> None:
    assert client.get("/person/first", headers=CURL).get_json() == JOHN


def test_a_browser_gets_pages(browser: Browser) -> None:
    everybody, first = browser.get("/person/all"), browser.get("/person/first")
    assert everybody.mimetype == first.mimetype == "text/html"
    for name in ("John Bob", "Jane Bob", "Michael Clark"):
        assert name in everybody.text
    assert "John Bob" in first.text
    assert "Jane Bob" not in first.text


@pytest.mark.parametrize(
    ("accept", "format", "mimetype"),
    [
        (None, "", "application/json"),
        ("*/*", "", "application/json"),
        ("image/png", "", "application/json"),
        ("application/json, text/html", "", "application/json"),
        ("text/html;q=0.5, application/json", "", "application/json"),
        ("text/html, */*", "", "text/html"),
        (BROWSER["Accept"], "", "text/html"),
        (BROWSER["Accept"], "?format=json", "application/json"),
        ("*/*", "?format=html", "text/html"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/person/all", "/person/first", "/timeout"])
def test_the_format_is_negotiated(
    client: FlaskClient, path: str, accept: str | None, format: str, mimetype: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = client.get(path + format, headers=headers)
    assert response.status_code == 200
    assert response.mimetype == mimetype
    assert "Accept" in response.vary


def test_an_empty_directory_has_no_first_person(browser: Browser) -> None:
    for person in (1, 2, 3):
        browser.client.post(f"/person/{person}/delete", json={})
    assert browser.client.get("/person/all").get_json() == []
    assert "The directory is empty" in browser.get("/person/all").text

    response = browser.client.get("/person/first")
    assert response.status_code == 404
    assert response.get_json()["message"] == "The directory is empty."

    response = browser.get("/person/first")
    assert response.status_code == 404
    assert response.mimetype == "text/html"
    assert "The directory is empty" in response.text


def test_a_browser_adds_a_person(browser: Browser) -> None:
    fields = {"first_name": "  Ada ", "last_name": "King  Noel"}
    response = browser.send("/person/all", "/person/add", **fields)
    assert response.status_code == 200
    assert [step.status_code for step in response.history] == [303]
    assert response.request.path == "/person/all"
    assert "Ada King Noel is in the directory now." in response.text
    assert names(browser.client)[3:] == ["Ada King Noel"]
    assert "is in the directory now" not in browser.get("/person/all").text


def test_json_adds_a_person(client: FlaskClient) -> None:
    ada = {"first_name": "Ada", "last_name": "Lovelace"}
    response = client.post("/person/add", json=ada)
    assert response.status_code == 201
    added = response.get_json()
    assert added == {"id": added["id"], **ada}
    assert client.get("/person/all").get_json()[3] == added


def test_names_of_all_alphabets(client: FlaskClient) -> None:
    person = {"first_name": "Zoë", "last_name": "王小明🌱"}
    assert client.post("/person/add", json=person).status_code == 201
    assert "王小明🌱" in client.get("/person/all").text


def test_the_longest_name_fits(client: FlaskClient) -> None:
    longest = {"first_name": "ä" * LONGEST_NAME, "last_name": "🌱" * LONGEST_NAME}
    assert client.post("/person/add", json=longest).status_code == 201


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "First name is required."),
        ("  \t", "First name is required."),
        ("x" * 51, "First name must have at most 50 characters, and has 51."),
        ("a\0b", "First name holds a character that cannot be shown."),
    ],
)
def test_a_wrong_name_is_refused(browser: Browser, name: str, fault: str) -> None:
    fields = {"first_name": name, "last_name": "<Clark>"}
    response = browser.send("/person/all", "/person/add", **fields)
    assert response.status_code == 422
    assert fault in response.text
    assert 'value="&lt;Clark&gt;"' in response.text

    response = browser.client.post("/person/add", json=fields)
    assert response.status_code == 422
    assert response.get_json()["errors"] == {"first_name": fault}
    assert len(names(browser.client)) == 3


@pytest.mark.parametrize("name", [7, None, ["John"], {"a": 1}, True])
def test_a_name_must_be_text(client: FlaskClient, name: object) -> None:
    response = client.post("/person/add", json={"first_name": "J", "last_name": name})
    assert response.status_code == 422
    assert response.get_json()["errors"] == {"last_name": "Last name must be text."}


def test_half_a_character_is_refused(client: FlaskClient) -> None:
    body = r'{"first_name": "\ud800", "last_name": "Bob"}'
    response = client.post("/person/add", data=body, content_type="application/json")
    assert response.status_code == 422


def test_all_faults_are_named_at_once(client: FlaskClient) -> None:
    response = client.post("/person/add", json={})
    assert set(response.get_json()["errors"]) == {"first_name", "last_name"}


@pytest.mark.parametrize("body", ["[1]", '"John"', "{", "", "null"])
def test_what_is_no_json_object_is_refused(client: FlaskClient, body: str) -> None:
    response = client.post("/person/add", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.get_json()["error"] == "Bad Request"


def test_too_much_is_refused(client: FlaskClient) -> None:
    person = {"first_name": "x" * 20_000, "last_name": "Bob"}
    assert client.post("/person/add", json=person).status_code == 413


def test_reloading_a_refused_form_leads_back(client: FlaskClient) -> None:
    assert client.get("/person/add").location == "/person/all"


def test_a_browser_deletes_a_person(browser: Browser) -> None:
    response = browser.send("/person/all", "/person/2/delete")
    assert response.status_code == 200
    assert "Jane Bob has been deleted." in response.text
    assert names(browser.client) == ["John Bob", "Michael Clark"]


def test_json_deletes_a_person(client: FlaskClient) -> None:
    response = client.post("/person/1/delete", json={})
    assert response.get_json() == {"deleted": JOHN}
    assert client.get("/person/first").get_json() == JANE


@pytest.mark.parametrize("number", [999_999, 0, 10**30])
def test_an_unknown_number_is_a_404(client: FlaskClient, number: int) -> None:
    response = client.post(f"/person/{number}/delete", json={})
    assert response.status_code == 404
    assert str(number) in response.get_json()["message"]
    assert len(names(client)) == 3


@pytest.mark.parametrize("path", ["/person/add", "/person/1/delete", "/timeout"])
@pytest.mark.parametrize("token", [None, "", "wrong", "é"])
def test_a_forged_form_is_refused(
    browser: Browser, path: str, token: str | None
) -> None:
    data = {"first_name": "Eve", "last_name": "Mallory"}
    if token is not None:
        data["csrf_token"] = token
    # Once as somebody new, once as somebody with a session.
    for _ in range(2):
        response = browser.client.post(path, data=data, headers=BROWSER)
        assert response.status_code == 403
        assert "no valid token" in response.text
        browser.get("/person/all")
    assert names(browser.client) == ["John Bob", "Jane Bob", "Michael Clark"]


def test_a_token_of_another_session_is_refused(app: Flask, browser: Browser) -> None:
    stranger = app.test_client()
    stranger.get("/person/all", headers=BROWSER)
    with stranger.session_transaction() as session:
        token = session["csrf_token"]
    browser.get("/person/all")
    response = browser.client.post("/person/1/delete", data={"csrf_token": token})
    assert response.status_code == 403


def test_names_cannot_inject_html(browser: Browser) -> None:
    script = {"first_name": "<script>x</script>", "last_name": "\"'&"}
    added = browser.client.post("/person/add", json=script).get_json()
    for person in (1, 2, 3):
        browser.client.post(f"/person/{person}/delete", json={})
    for path in ("/person/all", "/person/first"):
        page = browser.get(path).text
        assert "<script" not in page
        assert "&lt;script&gt;x&lt;/script&gt; &#34;&#39;&amp;" in page
    page = browser.send("/person/all", f"/person/{added['id']}/delete").text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_names_cannot_inject_sql(client: FlaskClient) -> None:
    person = {"first_name": "Robert'); DROP TABLE person;--", "last_name": "%s"}
    assert client.post("/person/add", json=person).status_code == 201
    assert names(client)[3] == "Robert'); DROP TABLE person;-- %s"
