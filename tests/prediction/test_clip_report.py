"""The page of results: what a reader sees in a browser, that it needs nothing else, and what it refuses."""

import io
import re
from datetime import date

import numpy as np
import pytest
from browser import MISSING, Browser
from labelled_models import LABELS
from PIL import Image

from hf_blemo._registration import __version__
from hf_blemo.blemore import EMOTIONS
from hf_blemo.prediction.clip_report import result_html, write_report
from hf_blemo.prediction.clip_words import LIMITS, blend_words, limits

HAPPY_SAD = [{"emotion": "hap", "salience": 70.0}, {"emotion": "sad", "salience": 30.0}]
SAD = [{"emotion": "sad", "salience": 100.0}]
SHARES = {
    "presence": (0.08, 0.05, 0.14, 0.913, 0.72, 0.1),
    "salience": (0.03, 0.02, 0.05, 0.587, 0.273, 0.04),
    "probabilities": (0.04, 0.03, 0.07, 0.521, 0.279, 0.06),
}


def result(clip="clips/happy.mp4", blend=HAPPY_SAD, **entries):
    return {
        "clip": clip,
        "blend": blend,
        **{name: dict(zip(EMOTIONS, values, strict=True)) for name, values in SHARES.items()},
        "encoder_weights": {"clip": 0.1, "wavlm": 0.3, "imagebind": 0.35, "hubert": 0.25},
        "selected_encoders": ["imagebind", "wavlm"],
        "duration": 4.0,
        "notes": [],
    } | entries


def window(start, end, blend, happiness):
    shares = dict.fromkeys(EMOTIONS, 0.0) | {"hap": happiness, "sad": 1 - happiness}
    return {"start": start, "end": end, "blend": blend, "probabilities": shares, "encoder_weights": {"clip": 1.0}}


TIMELINE = [window(0.0, 2.0, HAPPY_SAD, 0.6), window(1.0, 3.0, HAPPY_SAD, 0.7), window(2.0, 4.0, SAD, 0.25)]


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(MISSING)
    with Browser() as browser:
        yield browser


def test_words_of_blends():
    assert blend_words(HAPPY_SAD) == "70 % happiness, 30 % sadness"
    assert blend_words(SAD) == "sadness" and blend_words([]) == "no emotion"


def test_page_in_a_browser(browser, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG")
    labels = [{"blend": SAD, "probability": 0.123}]
    results = [
        result(timeline=TIMELINE, notes=["sound only"], labels=labels, thumbnails=[file.getvalue()] * 3),
        result("calm.wav", SAD),
        {"clip": "broken.mp4", "error": "broken.mp4: no decoder\nknows it"},
    ]
    path = tmp_path / "out" / "report.html"
    write_report(results, path, "you/model")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    browser.open(path)
    text = browser.text()
    for words in ("you/model", "3, 1 of them failed", LIMITS, "91.3 %", "58.7 %", "52.1 %", "12.3 %"):
        assert words in text
    assert "broken.mp4: no decoder knows it" in text and "Sound only" in text
    headings = browser.run("return [...document.querySelectorAll('h2')].map(h => h.innerText.trim())")
    assert headings == ["70 % happiness, 30 % sadness", "Sadness"]
    assert browser.run("return [...document.images].map(i => i.naturalWidth)") == [64, 64, 64]
    bar = "return [...document.querySelectorAll('#clip-1 > .clip-blend-bar span')].map(s => s.offsetWidth)"
    happiness, sadness = browser.run(bar)
    assert happiness / (happiness + sadness) == pytest.approx(0.7, abs=0.005)
    meter = "return [...document.querySelectorAll('#clip-1 .clip-emotions tbody tr:nth-child(4) .clip-track')]"
    shares = browser.run(f"{meter}.map(t => t.firstChild.getBoundingClientRect().width / t.clientWidth)")
    assert shares == pytest.approx([0.913, 0.587, 0.521], abs=0.01)
    assert browser.console() == [] and browser.requests() == [path.as_uri()]


def test_page_fits_phones_and_both_schemes(browser, tmp_path):
    path = tmp_path / "report.html"
    write_report([result(timeline=TIMELINE), result("b.mp4")], path, "model")
    luminances = {}
    for scheme in ("light", "dark"):
        browser.open(path, width=360, height=800, scheme=scheme)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        with Image.open(io.BytesIO(browser.screenshot())) as image:
            pixels = np.asarray(image.convert("L"), dtype=float)
        assert pixels.std() > 20  # not blank
        luminances[scheme] = np.median(pixels)
    assert luminances["light"] > 220 and luminances["dark"] < 40


def page_of(results, folder, model="model"):
    write_report(results, folder / "report.html", model)
    return (folder / "report.html").read_text()


def overview(browser):
    """Rows of the overview that are shown: name, truth, verdict and confidence."""
    rows = "[...document.querySelector('.report-overview').tBodies[0].rows].filter(row => !row.hidden)"
    return browser.run(f"return {rows}.map(row => [...row.cells].map(cell => cell.innerText.trim()))")


def cards(browser):
    shown = "[...document.querySelectorAll('article')].filter(article => !article.parentElement.hidden)"
    return browser.run(f"return {shown}.map(article => article.querySelector('b').textContent)")


def sorted_by(browser, column):
    header = f"document.querySelector('.report-overview th:nth-child({column})')"
    # As by the keyboard: the button takes the focus, and Enter presses it.
    browser.run(f"{header}.querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.command(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
    return browser.run(f"return {header}.getAttribute('aria-sort')")


def test_true_labels_stand_beside_predictions_and_headers_sort(browser, tmp_path):
    even = [{"emotion": "hap", "salience": 50.0}, {"emotion": "sad", "salience": 50.0}]
    results = [
        result("A10_mix_hap_sad_70_30_ver1"),
        result("A9_mix_hap_sad_70_30_ver1", even),
        result("A2_neu_sit1_ver1.mp4", SAD, unlike_training=True, notes=["unlike the clips of before"]),
        {"clip": "A1_ang_int1_ver1", "error": "broken"},
        result("mine.mp4", SAD),
        result("other.mp4", SAD),
    ]
    path = tmp_path / "report.html"
    options = {"truths": {"mine.mp4": SAD}, "details": {"Weights": "ab12"}}
    write_report(results, path, "model", **options)
    browser.requests()
    browser.open(path)
    text = browser.text()
    for line in (
        "ab12",
        "2 of 4, 1 in other shares",
        f"{date.today()}, hf_blemo {__version__}",
        "Unlike the clips of before",
    ):
        assert line in text
    found = [[row[0], *row[2:5]] for row in overview(browser)]
    assert found == [
        ["A10_mix_hap_sad_70_30_ver1", "70 % happiness, 30 % sadness", "✓ right", "80.0 %"],
        ["A9_mix_hap_sad_70_30_ver1", "70 % happiness, 30 % sadness", "≈ shares differ", "80.0 %"],
        ["A2_neu_sit1_ver1.mp4 unlike the training clips", "neutral", "✗ wrong", "27.9 %"],
        ["A1_ang_int1_ver1"],
        ["mine.mp4", "sadness", "✓ right", "27.9 %"],
        ["other.mp4", "–", "–", "27.9 %"],
    ]
    assert [
        text.strip()
        for text in browser.run("return [...document.querySelectorAll('.clip-truth')].map(t => t.innerText)")
    ] == [
        "True label: 70 % happiness, 30 % sadness ✓ right",
        "True label: 70 % happiness, 30 % sadness ≈ shares differ",
        "True label: neutral ✗ wrong",
        "True label: sadness ✓ right",
    ]
    # Numbers within names count; what failed comes last.
    names = [
        "A2_neu_sit1_ver1.mp4",
        "A9_mix_hap_sad_70_30_ver1",
        "A10_mix_hap_sad_70_30_ver1",
        "mine.mp4",
        "other.mp4",
    ]
    assert sorted_by(browser, 1) == "ascending" and cards(browser) == [*names, "A1_ang_int1_ver1"]
    assert sorted_by(browser, 1) == "descending" and cards(browser) == [*names[::-1], "A1_ang_int1_ver1"]
    assert sorted_by(browser, 5) == "descending" and cards(browser)[:2] == [names[2], names[1]]
    assert sorted_by(browser, 2) == "ascending" and [row[1] for row in overview(browser)][0].startswith(
        "50 % happiness"
    )
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.console() == [] and browser.requests() == [path.as_uri()]


def test_many_clips_come_in_pages_and_stay_small(browser, tmp_path):
    file = io.BytesIO()
    Image.effect_noise((96, 72), 60).save(file, "JPEG")
    path = tmp_path / "report.html"
    write_report([result(f"clip {number}", thumbnails=[file.getvalue()] * 8) for number in range(120)], path, "model")
    assert len(re.findall("<img ", path.read_text())) == 120 * 5
    browser.open(path)
    pager = ".report-pager > :nth-child({})"
    assert cards(browser) == [row[0] for row in overview(browser)] == [f"clip {number}" for number in range(50)]
    for place in (1, 3, 3):
        browser.run(f"document.querySelector('{pager.format(place)}').click()")
    assert cards(browser) == [row[0] for row in overview(browser)] == [f"clip {number}" for number in range(100, 120)]
    assert browser.run(f"return document.querySelector('{pager.format(2)}').outerHTML") == (
        '<span role="status">Clips 101 to 120 of 120</span>'
    )
    assert browser.run(f"return document.querySelector('{pager.format(3)}').disabled")
    # A link to a clip leads to its page, and paper has all of them.
    browser.run("location.hash = '#clip-60'")
    browser.wait_for("return !document.querySelector('#clip-60').parentElement.hidden")
    assert cards(browser)[0] == "clip 50"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert len(cards(browser)) == 120
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert len(cards(browser)) == 50


def test_frames_stand_in_one_row_on_a_phone(browser, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG")
    path = tmp_path / "report.html"
    write_report([result(thumbnails=[file.getvalue()] * 8)], path, "model")
    browser.open(path, width=390, height=844)
    tops = browser.run("return [...document.images].map(image => image.getBoundingClientRect().top)")
    assert len(tops) == 8 and len(set(tops)) == 1
    assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_equal_results_give_an_equal_page_that_names_no_address(tmp_path):
    page = page_of([result(timeline=TIMELINE)], tmp_path)
    assert page == page_of([result(timeline=TIMELINE)], tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", page)
    assert "<nav" not in page


def test_everything_is_escaped(tmp_path):
    attack = '"><script>alert(1)</script>'
    shown = result(attack, notes=[attack], encoder_weights={attack: 0.5}, selected_encoders=[attack])
    page = page_of([shown, {"clip": attack, "error": attack}], tmp_path, attack)
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") >= 7


def test_encoders_stand_by_rank_then_by_weight():
    names = re.findall(r'class="clip-encoder">(\w+)<', result_html(result()))
    assert names == ["imagebind", "wavlm", "hubert", "clip"]
    assert re.findall(r'class="clip-rank">(\d)<', result_html(result())) == ["1", "2"]


def test_timeline_draws_each_second_from_the_nearest_window():
    fragment = result_html(result(timeline=TIMELINE))
    boxes = re.findall(r"M(\S+) (\S+)h(\S+)v(\S+)h\S+z", fragment)
    assert [
        tuple(map(float, box)) for box in boxes
    ] == [  # x, y, width, height of happiness in three windows, then of sadness above it
        (0.0, 40.0, 375.0, 60.0),
        (375.0, 30.0, 250.0, 70.0),
        (625.0, 75.0, 375.0, 25.0),
        (0.0, 0.0, 375.0, 40.0),
        (375.0, 0.0, 250.0, 30.0),
        (625.0, 0.0, 375.0, 75.0),
    ]
    assert "0.0–2.5 s: 70 % happiness, 30 % sadness; 2.5–4.0 s: sadness</desc>" in fragment
    assert re.findall(r'class="clip-tick[^>]*>([^<]+)<', fragment) == ["0 s", "1 s", "2 s", "3 s", "4 s"]


def test_gaps_stay_empty_and_long_clips_are_told_in_minutes():
    fragment = result_html(result(duration=600.0, timeline=[window(0, 60, SAD, 0.0), window(300, 420, SAD, 0.0)]))
    assert re.findall(r"M(\S+) \S+h(\S+)v", fragment) == [("0.00", "100.00"), ("500.00", "200.00")]
    assert "0:00–1:00: sadness; 5:00–7:00: sadness</desc>" in fragment
    assert "· 10:00 min" in fragment


def test_sums_of_rounded_numbers_can_be_a_little_above_1():
    assert 'style="width:100%;' in result_html(result(presence=dict.fromkeys(EMOTIONS, 1.00004)))


def test_no_result_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="expected at least one clip"):
        write_report([], path, "model")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def foreign(name, blend, shares=None, **entries):
    """A result of a model of other labels."""
    names = list(LABELS[name]["id2label"].values())
    shares = dict(zip(names, shares or [1 / len(names)] * len(names), strict=True))
    top = max(blend, key=lambda part: part["salience"])["emotion"]
    return result(blend=blend, top=top, **dict.fromkeys(SHARES, shares)) | entries


SOFT_SHARES = [0.0004, 0.2, 0.0296, 0.62, 0.15]
SOFT = [
    {"emotion": n, "salience": 100 * v} for n, v in zip(LABELS["soft"]["id2label"].values(), SOFT_SHARES, strict=True)
]
THREE = [{"emotion": name, "salience": float(part)} for name, part in (("joy", 40), ("awe", 30), ("envy", 30))]
CASES = {
    "seven": ([{"emotion": "calm", "salience": 100.0}], "calm", "Class"),
    "soft": (SOFT, "62 % fish, 20 % dog, 15 % horse, 3 % others", "Shares"),
    "three": (THREE, "40 % joy, 30 % awe, 30 % envy", "Blend"),
}


@pytest.mark.parametrize("name", CASES)
def test_other_labels_are_said_by_their_own_names(name, tmp_path):
    blend, words, heading = CASES[name]
    names = list(LABELS[name]["id2label"].values())
    assert blend_words(blend, names) == words
    shares = SOFT_SHARES if name == "soft" else None
    page = page_of([foreign(name, blend, shares), foreign(name, blend, shares, clip="b")], tmp_path)
    assert f'aria-label="{words}"' in page and f'<span class="report-sort">{heading}</span></th>' in page
    assert f"{len(names)} classes ({', '.join(names)})" in limits(names) and limits(names) in page
    body = page.split("</style>")[1].replace("clip-emotions", "").lower()
    assert not re.search("emotion|sadness|happiness|blemore", body) and "blended" not in page
    assert f"all {len(names)} together 100" in page
    chosen = re.findall(r'class="clip-chosen"><th scope="row" class="clip-label"><span[^>]*></span>([^<]+)<', page)
    assert set(chosen) == ({"fish"} if name == "soft" else {part["emotion"] for part in blend})


def test_names_of_blemore_are_only_written_out_where_all_six_are_known():
    four = ["neu", "hap", "sad", "ang"]
    assert blend_words(SAD, four) == "sad" and blend_words(HAPPY_SAD, four) == "70 % hap, 30 % sad"
    shown = result(blend=SAD, **dict.fromkeys(SHARES, dict.fromkeys(four, 0.25)))
    assert "sadness" not in result_html(shown) and limits() == LIMITS


def test_distributions_over_time_are_told_by_their_largest_name():
    windows = [
        {
            "start": float(second),
            "end": second + 1.0,
            "blend": SOFT,
            "top": top,
            "probabilities": dict(zip(names, row, strict=True)),
            "encoder_weights": {"clip": 1.0},
        }
        for names in [list(LABELS["soft"]["id2label"].values())]
        for second, (top, row) in enumerate(
            [("fish", SOFT_SHARES), ("fish", SOFT_SHARES), ("dog", [0, 0.6, 0, 0.4, 0])]
        )
    ]
    fragment = result_html(foreign("soft", SOFT, SOFT_SHARES, timeline=windows, duration=3.0))
    assert "0.0–2.0 s: fish; 2.0–3.0 s: dog</desc>" in fragment
    assert len(re.findall(r"<path d=\"M\S+ \S+h", fragment)) == len([share for share in SOFT_SHARES if share > 0])


def test_more_names_than_colours_use_them_again():
    names = [f"class {number}" for number in range(60)]
    shares = dict.fromkeys(names, 1 / 60)
    fragment = result_html(result(blend=[{"emotion": names[-1], "salience": 100.0}], **dict.fromkeys(SHARES, shares)))
    used = set(re.findall(r"var\(--clip-(c\d+)\)", fragment))
    assert used and used <= set(re.findall(r"--clip-(c\d+): #", fragment)) and "class 59" in fragment


# Of missing long, middle and short cones: Machado, Oliveira and Fernandes (2009).
SIGHTS = np.array([
    [1, 0, 0, 0, 1, 0, 0, 0, 1],
    [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
    [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881],
    [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039],
]).reshape(4, 3, 3)  # fmt: skip
XYZ = np.array([0.4124, 0.3576, 0.1805, 0.2126, 0.7152, 0.0722, 0.0193, 0.1192, 0.9505]).reshape(3, 3)


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("names", [EMOTIONS, "abcdefgh"])
def test_colours_stay_apart_for_every_kind_of_sight(names, scheme):
    """By distances in CIELAB."""
    shown = result(**dict.fromkeys(SHARES, dict.fromkeys(names, 1 / len(names))), blend=[], top=names[0])
    fragment = result_html(shown)
    ends = EMOTIONS if names == EMOTIONS else [f"c{place}" for place in range(len(names))]
    hexes = [re.findall(rf"--clip-{end}: #(\w{{6}})", fragment)[scheme] for end in ends]
    colours = np.array([[int(code[start : start + 2], 16) for start in (0, 2, 4)] for code in hexes]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for sight in SIGHTS:
        seen = np.clip(linear @ sight.T, 0, 1)
        x, y, z = np.cbrt(seen @ XYZ.T / XYZ.sum(axis=1)).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(names), 1)]
        assert distances.min() > 20
