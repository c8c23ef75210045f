"""The dashboard in a real Chromium: login, live updates, dark and light, a phone, and nothing from elsewhere.

`SHOAL_TEST_SCREENSHOTS` names a folder for pictures of what was seen.
"""

import os
import pathlib
import re
import shutil
from urllib.parse import urlsplit

import pytest

import kit

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

LINK = re.compile(r"dashboard\s+(http://\S+/dashboard\?code=[0-9a-f]{32})")
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
# In a row; then the breaker opens.
FAILURES = 5
# Ten of each of the three confidences.
JUDGED = 30
FIELDS = [
    "Let G be a group of order {} and f a homomorphism onto H. Prove that the kernel of f is a normal subgroup, and find "
    "the eigenvalues of the matrix of its representation.",
    "Write a Python function that sorts a list of {} integers, with a docstring, and fix the off-by-one bug in the loop.",
]


def judge(node):
    """Has answers of three confidences in two fields judged: the surer, the better, but never as good as said."""
    for n in range(JUDGED):
        logprob, good = [(-0.02, 4), (-0.4, 3), (-1.2, 1)][n % 3]
        question = FIELDS[n % len(FIELDS)].format(n)
        answer = node.chat("weak-135m", f"{question} [[stub n=9 logprob={logprob}]]", metadata={"confidence_threshold": 0.01})
        assert answer.status_code == 200, answer.text
        score = {"request_id": answer.headers["x-request-id"], "score": float(n // 3 % 5 < good)}
        assert node.post("/v1/feedback", score).status_code == 200


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A node with a device, three providers (one costs, one fails, one waits), a dead node, and some requests."""
    if not (kit.SHOAL and kit.LOADTEST):
        pytest.skip("shoal or shoal-loadtest is missing: set SHOAL_BIN and SHOAL_LOADTEST_BIN")
    folder = tmp_path_factory.mktemp("browser")
    mesh = kit.Mesh(folder)
    try:
        device = mesh.stub("phone", model="weak-135m", slots=4)
        cloud = mesh.stub("cloud", model="strong-400b")
        (folder / "shoal.toml").write_text("version = 1\n" + "".join(f'''
[[providers]]
name = "{name}"
base_url = "{url}/v1"
models = ["strong-400b"]
budget = "{budget}"
internal_ok = {internal}
[[prices]]
provider = "{name}"
model = "strong-400b"
input = 300.0
output = 900.0
''' for name, url, budget, internal in [("own", cloud.url, "1usd/day", "true"),
                                        ("gone", f"http://127.0.0.1:{kit.free_port()}", "20usd/month", "true"),
                                        ("strict", cloud.url, "1usd/day", "false")]))
        node = mesh.first("kitchen", more=["--device", device.url, "--config", folder / "shoal.toml"])
        mesh.everywhere("weak-135m")
        attic = mesh.join("attic")
        mesh.whole(2)
        attic.kill()
        for n in range(3):
            assert node.chat("weak-135m", f"[[stub ttft={20 * n} n=12]]", stream=n == 2).status_code == 200
        answer = node.chat("weak-135m", "[[stub n=30 logprob=-0.1]]", metadata={"confidence_threshold": 0.3})
        node.confident = answer.headers["x-request-id"]
        judge(node)
        for _ in range(FAILURES):
            assert node.chat("gone/strong-400b", max_tokens=9).status_code >= 500
        answer = node.chat("weak-135m", "[[stub n=30 logprob=-2.5]]", metadata={"confidence_threshold": 0.7}, max_tokens=60)
        assert answer.headers["x-shoal-egress"] == "own", answer.text
        node.escalated = answer.headers["x-request-id"]
        kit.until("the dead node out of view", lambda: node.alive_nodes() == {"kitchen"})
        yield node
    finally:
        mesh.close()


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser, scene):
    """A browser that followed the printed link."""
    context = browser.new_context(viewport=DESK)
    found, _ = kit.until("a link printed", lambda: LINK.search(scene.text()), 10)
    page = context.new_page()
    page.goto(found.group(1))
    assert page.url == scene.url + "/dashboard", "the code leaves the address"
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context, scene):
    """A page that may complain of nothing and ask nobody but the node."""
    complaints, foreign = [], []

    def asked(request):
        if urlsplit(request.url).netloc != urlsplit(scene.url).netloc:
            foreign.append(request.url)

    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", asked)
    page.goto(scene.url + "/dashboard")
    yield page
    page.close()
    assert (complaints, foreign) == ([], [])


def picture(page, name):
    if folder := os.environ.get("SHOAL_TEST_SCREENSHOTS"):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def row(page, request_id):
    return page.locator("#requests tr", has=page.locator(f'a[href$="{request_id}"]'))


def sideways(page):
    """Pixels that the page is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def brightness(page, selector):
    """Brightness of an element's background and of its text, 0 to 255."""
    style = page.evaluate("s => { const c = getComputedStyle(document.querySelector(s)); "
                          "return [c.backgroundColor, c.color] }", selector)
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in style]


def test_a_browser_without_the_link_is_shown_the_way_in(browser, scene):
    with browser.new_context() as stranger:
        page = stranger.new_page()
        assert page.goto(scene.url + "/dashboard").status == 401
        assert "shoal dashboard" in page.inner_text("main")


def test_the_page_follows_what_happens(page, scene):
    page.wait_for_selector('#live[data-state="live"]')
    request_id = scene.chat("weak-135m", "[[stub n=7]]").headers["x-request-id"]
    api.expect(row(page, request_id)).to_contain_text("completed", timeout=kit.PATIENCE_S * 1000)
    assert page.locator("#summary").count() == 1, "only the inside of a section is replaced"


def test_providers_and_nodes_tell_their_state(page):
    card = {name: page.locator("#providers article", has_text=name) for name in ("own", "gone", "strict")}
    for words in ("ready", "internal data allowed", "of $1.00 today", "closed", "1, none failed"):
        api.expect(card["own"]).to_contain_text(words)
    assert "$0 of" not in card["own"].inner_text()
    assert card["own"].locator("svg.bar rect").bounding_box()["width"] > 0
    for words in ("failing", "internal data allowed", "$0 of $20.00 this month", "100 % failed", "open"):
        api.expect(card["gone"]).to_contain_text(words)
    api.expect(card["strict"]).to_contain_text("public data only")
    api.expect(page.locator("#nodes tr", has_text="attic")).to_contain_text("away")


def test_confidence_is_drawn_beside_what_came_true(page):
    card = page.locator("#confidence article", has_text="weak-135m")
    api.expect(card).to_contain_text(f"{JUDGED} judged")
    diagram = card.locator(".reliability svg.diagram")
    assert diagram.locator("circle").count() == 3
    assert re.search(r"of 10 answers at 0\.\d\d the mean score was 0\.", diagram.get_attribute("aria-label"))
    frame = diagram.locator("rect").bounding_box()
    for dot in diagram.locator("circle").all():
        box = dot.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert frame["x"] <= middle[0] <= frame["x"] + frame["width"] + 1
        assert frame["y"] - 1 <= middle[1] <= frame["y"] + frame["height"] + 1
    if folder := os.environ.get("SHOAL_TEST_SCREENSHOTS"):
        page.locator("#confidence").screenshot(path=f"{folder}/confidence.png")


def test_light_and_dark_both_read(page):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("body", "#providers article"):
            paper, ink = brightness(page, selector)
            assert (paper > 200 > 80 > ink) if scheme == "light" else (paper < 60 < 180 < ink), (scheme, paper, ink)
        picture(page, f"desk-{scheme}")


def test_a_phone_needs_no_sideways_scrolling(page, scene):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    assert sideways(page) == 0
    picture(page, "phone-dark")
    page.goto(f"{scene.url}/dashboard/requests/{scene.escalated}")
    assert sideways(page) == 0
    picture(page, "phone-request-dark")


def test_a_request_leads_to_its_own_page(page, scene):
    api.expect(row(page, scene.escalated)).to_contain_text("low confidence")
    row(page, scene.escalated).locator("a").click()
    page.wait_for_url(f"**/dashboard/requests/{scene.escalated}")
    for words in ("low confidence", "30 tokens of answers", "to own"):
        api.expect(page.locator("main")).to_contain_text(words)
    api.expect(page.locator(".attempts li").first).to_contain_text("not good enough")
    picture(page, "request-light")
    page.get_by_text("All requests").click()
    page.wait_for_url("**/dashboard#requests")
    page.goto(f"{scene.url}/dashboard/requests/{scene.confident}")
    api.expect(page.locator("main")).to_contain_text(re.compile(r"0\.\d\d calibrated, 0\.\d\d as observed"))
