"""The report's pages as a person sees them: opened from disk by the Chromium of this machine."""

import csv
import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline import discover, evaluate, outputs
from beam_pipeline.config import EvaluateConfig, ReportConfig
from beam_pipeline.manifest import RunManifest
from beam_pipeline.matches import find_images
from beam_pipeline.report import groups_page
from beam_pipeline.report.pages import write_report
from beam_pipeline.self_search import Pairs
from tests import command_line
from tests.finished_runs import candidate, make_index, make_run, write_truth
from transforms.arrays import label_audit
from transforms.storage import files, tables
from transforms.storage.feature_store import FeatureStore
from transforms.types import Prediction, VerificationSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium")

ATTACK = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>"
LANDMARKS = ("tower", "bridge", ATTACK, '😀,"it\'s"', "L" * 200)
QUERIES = [f"q{n:02d}" for n in range(30)] + [ATTACK, "😀 a,b\"c'", "i" * 200, "</article>&lt;"]


def _make(root: pathlib.Path) -> str:
    index = make_index(root / "index", {f"{landmark} 1": landmark for landmark in LANDMARKS})
    predictions, truth = [], {}
    for n, image_id in enumerate(QUERIES):
        landmark = LANDMARKS[n % len(LANDMARKS)]
        score = 1 - n / 50
        others = tuple(candidate(f"{name} 1", name, score) for name in (landmark, "tower", "bridge"))
        predictions.append(Prediction(image_id, landmark, 3 * score, others, n % 3 > 0))
        truth[image_id] = "" if n % 7 == 0 else "tower" if n % 2 else "bridge"
    run = make_run(root / "run", index, predictions)
    changed = [Prediction(p.image_id, "bridge", p.score, p.candidates, p.verified) for p in predictions]
    other = make_run(root / "other", index, changed)
    (root / "names.csv").write_text(f"landmark_id,name\ntower,{ATTACK.replace(',', ' ')}\n")
    write_truth(root / "truth.csv", truth)
    write_report(
        ReportConfig(
            run, str(root / "report"), str(root / "truth.csv"), str(root / "names.csv"), against=other
        )
    )
    return str(root / "report")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("pages") / "<i>'report' & more")


def _make_found(root: pathlib.Path) -> pathlib.Path:
    """Groups of queries, of 5, 4 and 3, as `landmarks discover` leaves them, with their page."""
    index = make_index(root / "index", {"tower 1": "tower"})
    ids = [*QUERIES[30:], *QUERIES[:8], "alone"]
    run = make_run(root / "run", index, [Prediction(i, None, None, (), True) for i in ids])
    stored = find_images(FeatureStore(f"{run}/queries"), outputs.read_manifest(run, RunManifest).shards, ids)
    images = pa.table({"image_id": ids, "uri": [stored[i].ref.uri for i in ids]})
    first, second = np.array(
        [(0, 1), (1, 2), (2, 3), (5, 6), (6, 7), (3, 4), (0, 4), (8, 9), (8, 10), (9, 11)]
    ).T
    many = np.arange(len(first)) + 100
    pairs = Pairs(first, second, np.float32(many / 200), many, np.zeros(len(first)))
    photographs, linked = discover.grouped(images, pairs, label_audit.TYPICAL)
    found = root / "found"
    photographs = photographs.append_column("id", photographs["image_id"])
    for name, table in ((discover.GROUPS, photographs), (discover.PAIRS, linked)):
        files.write_parquet(str(found / name), table)
    counts = {"queries": len(ids), "groups": 3, "photographs": 12, "out_of_time": 0}
    settings = dataclasses.asdict(VerificationSettings())
    files.write_json(
        str(found / "manifest.json"), {"run": "0", "run_uri": run, "verification": settings, "counts": counts}
    )
    groups_page.write_page(str(found))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return _make_found(tmp_path_factory.mktemp("groups") / "<i>'found' & more")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, report):
    """A page in a profile of its own; what the console says is an error."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    context.set_default_timeout(300_000)  # of a crowded machine
    opened, problems = context.new_page(), []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "requestfailed", lambda r: "ABORTED" in r.failure or problems.append(r.url)
    )  # by leaving a page
    opened.show = lambda name: opened.goto(f"{pathlib.Path(report).as_uri()}/{name}.html")
    yield opened
    assert problems == []
    assert opened.evaluate("window.hacked") is None
    context.close()


def shown(page):
    return page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.id)")


PAGES = ("index", "queries", "landmarks", "mistakes", "changes")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_fits_the_screen_and_has_its_pictures(page, name):
    for shown_at in itertools.product((1400, 400), ("light", "dark")):
        width, scheme = shown_at
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.show(name)
        assert page.locator("h1").count() == 1, shown_at
        assert page.locator("nav [aria-current=page]").count() == 1, shown_at
        assert page.evaluate("document.documentElement.scrollWidth") <= width, shown_at
        pictures = "[...document.images].every(image => !image.complete || image.naturalWidth > 0)"
        assert page.evaluate(pictures), shown_at
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light"), shown_at


def test_pages_lead_to_each_other(page):
    page.show("index")
    for name in ("Queries", "Landmarks", "Mistakes", "Changes", "Overview"):
        page.get_by_role("link", name=name, exact=True).click()
        assert page.locator("nav [aria-current=page]").text_content() == name


def test_hostile_names_stay_text(page):
    page.show("queries")
    page.get_by_label("Search").fill("hacked")
    assert page.locator(".card h3", has_text=ATTACK).count() > 0
    page.get_by_label("Search").fill(ATTACK)
    assert ATTACK in shown(page)
    for image_id in QUERIES[30:]:
        page.get_by_label("Search").fill(image_id)
        assert image_id in shown(page)
        card = page.locator(".card").nth(shown(page).index(image_id))
        assert image_id in card.text_content()
    page.show("landmarks")
    names = " ".join(page.locator(".card h3").all_text_contents())
    assert all(landmark in names for landmark in LANDMARKS if landmark != "tower")
    assert f"{ATTACK} (tower)" in names


def test_the_gallery_is_sorted_and_comes_by_pages(page):
    page.show("queries")
    assert shown(page) == QUERIES[:24]
    assert page.get_by_role("button", name="Previous").first.is_disabled()
    page.get_by_role("button", name="Next").first.click()
    assert shown(page) == QUERIES[24:]
    assert page.locator(".count").first.text_content() == "34 of 34, page 2 of 2"
    page.reload()
    assert shown(page) == QUERIES[24:]
    page.keyboard.press("ArrowLeft")
    assert shown(page) == QUERIES[:24]
    page.get_by_label("Sort by").select_option("+confidence")
    assert shown(page) == QUERIES[:9:-1]
    page.get_by_label("Sort by").select_option("-cost")
    costs = page.evaluate("window.RECORDS.map(r => [r.id, r.cost])")
    top = sorted(costs, key=lambda c: -c[1])[:5]
    assert {*shown(page)[:5]} == {image_id for image_id, _ in top}


@pytest.mark.parametrize(
    "control, value, belongs",
    [
        ("[name=text]", "Q07", lambda n: n == 7),
        ("[name=landmark]", ATTACK, lambda n: n % 5 == 2),
        ("[name=truth]", "bridge", lambda n: n % 7 and n % 2 == 0),
        ("[data-filter=from]", "2.5", lambda n: 3 * (1 - n / 50) >= 2.5),
        ("[data-filter=to]", "1.5", lambda n: 3 * (1 - n / 50) <= 1.5),
        ("[name=verified]", "no", lambda n: n % 3 == 0),
        ("[name=outcome]", "other", lambda n: n % 7 == 0),
        ("[name=change]", "same", lambda n: n % 5 == 1),
    ],
)
def test_filters_filter(page, control, value, belongs):
    page.show("queries")
    control = page.locator(f"#filters {control}")
    if control.evaluate("c => c.tagName") == "SELECT":
        control.select_option(value)
    else:
        control.fill(value)
    wanted = [image_id for n, image_id in enumerate(QUERIES) if belongs(n)]
    assert shown(page) == wanted[:24]
    assert page.locator(".count").first.text_content().startswith(f"{len(wanted)} of {len(QUERIES)},")
    page.reload()
    assert shown(page) == wanted[:24]
    page.get_by_role("button", name="All").click()
    assert shown(page) == QUERIES[:24]
    page.locator("#filters [name=text]").fill("nothing has this")
    assert page.get_by_text("Nothing fits these filters.").is_visible()


def test_everything_can_be_done_by_keyboard(page):
    page.show("queries")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.get_by_role("button", name="Right", exact=True).first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Right", exact=True).first.get_attribute("aria-pressed") == "true"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_links_of_the_pages_open_the_gallery_filtered(page):
    page.show("mistakes")
    link = page.locator("section a").first
    count = int(link.text_content().split()[0])
    link.click()
    assert page.locator(".count").first.text_content().startswith(f"{count} of")
    page.reload()  # what is seen stays in the address
    page.reload()
    assert page.locator(".count").first.text_content().startswith(f"{count} of")
    page.show("landmarks")
    card = page.locator(".card", has_text="hacked").filter(has_not_text="(tower)").first
    count = int(card.get_by_role("link").text_content().split()[0])
    card.get_by_role("link").click()
    assert page.locator(".count").first.text_content().startswith(f"{count} of")
    page.show("changes")
    page.locator(".thumbs a").first.click()
    assert len(shown(page)) == 1


def test_the_threshold_follows_the_slider(page):
    page.show("mistakes")
    before, mark = page.locator("#reading").text_content(), page.locator("#mark path").get_attribute("d")
    page.get_by_role("slider").fill("0")
    assert page.locator("#reading").text_content() != before
    assert page.locator("#mark path").get_attribute("d") != mark
    assert "2.9 % of the queries answered" in page.locator("#reading").text_content()


def _card(page, image_id):
    page.get_by_label("Search").fill(image_id)
    return page.locator(".card").nth(shown(page).index(image_id))


def test_decisions_are_kept_and_exported_as_tables_that_the_commands_take(page, report, tmp_path):
    page.show("queries")
    _card(page, "q00").get_by_role("button", name="Right", exact=True).click()
    _card(page, "q01").get_by_role("button", name="Wrong").click()
    _card(page, "q05").get_by_role("button", name="No landmark").click()
    odd = "😀 a,b\"c'"
    other = _card(page, odd).get_by_label("Other")
    other.fill("Ü,\"'bridge 20 %20")
    other.blur()
    _card(page, "q06").get_by_role("button", name="Right", exact=True).click()
    _card(page, "q06").get_by_role("button", name="Right", exact=True).click()  # taken back
    page.reload()
    assert page.locator("#decided").text_content() == "4"
    page.get_by_label("Search").fill("")
    page.locator("[name=decision]").select_option("wrong")
    assert shown(page) == ["q01"]

    for kind, name in (("Labels CSV", "labels.csv"), ("Truth CSV", "truth.csv")):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    labels = tables.read_labels(str(tmp_path / "labels.csv")).to_pylist()
    assert labels == [
        {"image_id": "q00", "landmark_id": "tower"},
        {"image_id": odd, "landmark_id": "Ü,\"'bridge 20 %20"},
    ]
    rows = tables.read_truth(str(tmp_path / "truth.csv")).to_pylist()
    counted = {r["image_id"]: r["landmark_ids"] for r in rows if r["usage"] == "Public"}
    assert counted == {"q00": ["tower"], odd: ["Ü,\"'bridge 20 %20"], "q05": []}
    run = str(pathlib.Path(report).parent / "run")
    metrics = evaluate.run(EvaluateConfig(run, str(tmp_path / "truth.csv"), str(tmp_path / "m.json")))
    assert metrics["all"]["counts"]["queries"] == 3 and metrics["all"]["counts"]["correct"] == 1

    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#decided").text_content() == "0"


def test_paper_shows_cards_and_no_controls(page):
    page.show("queries")
    page.emulate_media(media="print")
    assert page.locator(".card").first.is_visible()
    assert not page.locator("#filters").is_visible() and not page.locator(".review").first.is_visible()
    assert len(page.pdf()) > 10_000


# Groups that wait for a name


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_groups_fit_the_screen_with_their_pictures_and_pairs(page, found, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto((found / "index.html").as_uri())
    assert page.locator("h1").count() == 1
    assert page.locator("h3").all_text_contents() == [f"Group {n}{6 - n} photographs" for n in (1, 2, 3)]
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator(".members img").all():
        picture.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
    # What holds n together are n - 1 pairs, the least sure first.
    pairs = [card.locator(".pair figcaption").all_text_contents() for card in page.locator("article").all()]
    assert [len(of_group) for of_group in pairs] == [4, 3, 2]
    shares = [float(re.search(r"place: ([\d.]+)%", text)[1]) for text in pairs[0]]
    assert shares == sorted(shares) and page.locator(".lines path").count() > 0
    text = page.locator("main").text_content()
    assert all(image_id in text for image_id in QUERIES[30:])


def test_named_groups_are_kept_and_saved_as_labels(page, found, tmp_path):
    page.goto((found / "index.html").as_uri())
    names, save = page.get_by_label("Name", exact=True), page.get_by_role("button", name="Save labels.csv")
    assert save.is_disabled() and "0 of 3 groups have a name" in page.locator("#named").text_content()
    groups = page.locator("article").evaluate_all("all => all.map(one => JSON.parse(one.dataset.ids))")
    assert {*groups[0]} >= {*QUERIES[30:]}
    odd = " Ü,\"'tower 20 %20 "
    names.nth(0).fill(odd)
    names.nth(2).fill("gate")
    page.locator("article").nth(0).get_by_role("checkbox").nth(1).uncheck()
    page.locator("article").nth(1).get_by_role("checkbox").nth(0).uncheck()  # of one without a name
    page.reload()
    assert names.nth(0).input_value() == odd.strip() and names.nth(1).input_value() == ""
    boxes = page.get_by_role("checkbox").evaluate_all("all => all.filter(b => !b.checked).map(b => b.value)")
    assert boxes == [groups[0][1], groups[1][0]]
    assert "2 of 3 groups have a name, for 7 photographs" in page.locator("#named").text_content()
    with page.expect_download() as download:
        save.click()
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(tmp_path / "labels.csv")
    labels = tables.read_labels(str(tmp_path / "labels.csv")).to_pylist()
    wanted = [(i, odd.strip()) for i in groups[0] if i != groups[0][1]] + [(i, "gate") for i in groups[2]]
    assert [(row["image_id"], row["landmark_id"]) for row in labels] == wanted
    for box in page.locator("article").nth(2).get_by_role("checkbox").all():  # the name stays, of none
        box.uncheck()
    page.reload()
    assert names.nth(2).input_value() == "gate" and "1 of 3" in page.locator("#named").text_content()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear").click()
    assert names.nth(0).input_value() == "" and save.is_disabled()
    assert page.get_by_role("checkbox").evaluate_all("all => all.every(b => b.checked)")


def test_enter_leads_from_name_to_name(page, found):
    page.goto((found / "index.html").as_uri())
    page.get_by_label("Name", exact=True).first.focus()
    for name in ("a", "b", "c"):
        page.keyboard.type(name)
        page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Save labels.csv"
    assert [name.input_value() for name in page.get_by_label("Name", exact=True).all()] == ["a", "b", "c"]


def test_what_is_not_shown_of_a_group_gets_its_name_too(page, found, tmp_path, monkeypatch):
    shutil.copytree(found, tmp_path / "found")
    (tmp_path / "found" / "index.html").unlink()
    monkeypatch.setattr(groups_page, "_MAX_GROUPS", 2)
    monkeypatch.setattr(groups_page, "_MAX_PHOTOGRAPHS", 3)
    page.goto(pathlib.Path(groups_page.write_page(str(tmp_path / "found"))).as_uri())
    assert page.get_by_text("The largest 2; all are in groups.csv.").is_visible()
    assert page.get_by_text("2 more get the name too.").is_visible()
    assert page.locator(".members img").count() == 6
    page.get_by_label("Name", exact=True).first.fill("gate")
    assert "for 5 photographs" in page.locator("#named").text_content()


def test_the_report_of_real_photographs(photos, page, tmp_path):
    """Index, recognize twice, and the report of one against the other, opened page by page; then queries are
    taken for places that wait for a name, and get one.
    """
    with open(photos / "photos.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["kind"] in ("landmark", "distractor")]
    labels = sorted({row["label"] for row in rows if row["label"]})[:6]
    shown_ = [row for row in rows if row["label"] in labels]
    index, queries = shown_[::2], [*shown_[1::2], *[row for row in rows if row["kind"] == "distractor"][:6]]
    for name, chosen in (("index", index), ("queries", queries)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{photos / row['path']}\n" for row in chosen))
    table = "".join(f"{row['id']},{row['label']}\n" for row in rows if row["label"] in (*labels, ""))
    (tmp_path / "truth.csv").write_text(f"id,landmarks\n{table}")
    of_index = "".join(f"{row['id']},{row['label']}\n" for row in index)
    (tmp_path / "labels.csv").write_text(f"id,landmark_id\n{of_index}")
    lists = [f"@{tmp_path / name}.txt" for name in ("index", "queries")]
    at = {
        name: str(tmp_path / name) for name in ("made", "run", "other", "report", "labels.csv", "truth.csv")
    }
    given = ("--images", lists[0], "--labels", at["labels.csv"], "--output", at["made"])
    assert command_line.run("index", *given) == 0
    for run, *flags in ((at["other"],), (at["run"], "--preset", "accurate")):
        command = ["recognize", "--images", lists[1], "--index", at["made"], "--output", run, *flags]
        assert command_line.run(*command, "--query_store", tmp_path / "features") == 0
    flags = ["--truth", at["truth.csv"], "--against", at["other"], "--output", at["report"]]
    assert command_line.run("report", "--run", at["run"], *flags) == 0
    for name in PAGES:
        page.goto((tmp_path / "report" / f"{name}.html").as_uri())
        assert page.evaluate("[...document.images].every(i => !i.complete || i.naturalWidth > 0)")
    page.goto((tmp_path / "report" / "queries.html").as_uri())
    assert page.locator(".count").first.text_content().startswith(f"{len(queries)} of {len(queries)},")
    assert page.locator(".lines path").count() > 0

    found = str(tmp_path / "found")
    assert command_line.run("discover", "--run", at["run"], "--min_score", "99", "--output", found) == 0
    page.goto((tmp_path / "found" / "index.html").as_uri())
    page.get_by_label("Name", exact=True).first.fill("a place of its own")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save labels.csv").click()
    download.value.save_as(tmp_path / "named.csv")
    command = shlex.split(page.locator("pre").text_content().replace("\\\n", ""))
    assert command[command.index("--output") + 1] == at["made"]
    command[command.index("--labels") + 1] = str(tmp_path / "named.csv")
    assert command_line.run(*command[1:]) == 0
    landmarks = pq.read_table(tmp_path / "made" / "images")["landmark_id"].to_pylist()
    members = json.loads(page.locator("article").first.get_attribute("data-ids"))
    assert landmarks.count("a place of its own") == len(members) >= 3
