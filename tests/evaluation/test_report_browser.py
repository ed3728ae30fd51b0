"""report.html in a real browser: Debian's or Playwright's chromium, driven by `pip install playwright`."""

import base64
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from sr_lightning.evaluation.report import save_versions, write_report

pytestmark = pytest.mark.slow
PROTOCOL = "y_shave-scale_8bit_ssim-wang_lr-made"
SIZE = 96  # of HR
GREY, RED, BLUE, GREEN = (90, 90, 90), (200, 30, 30), (30, 60, 210), (30, 190, 60)
ODD = "<img src=x onerror=alert(1)> \"q\" 'é' & 100 %/#?"


def row(model, image, psnr, dataset="Flat", scale=2):
    scores = {"psnr_y": psnr, "ssim_y": psnr / 100}
    return {"model": model, "scale": scale, "dataset": dataset, "image": image, **scores, "protocol": PROTOCOL}


def flat(colour, size=SIZE):
    return np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, size, size))


@pytest.fixture(scope="module")
def flat_page(tmp_path_factory):
    """Two images, three models, each version in one colour; pictures beside the page."""
    folder = tmp_path_factory.mktemp("flat")
    scores = {"bicubic": (30, 25), "net": (33, 27), "other": (32, 24)}
    rows = [
        row(m, i, p) for m, (a, b) in scores.items() for i, p in (("first", a), ("second", b), ("mean", (a + b) / 2))
    ]
    models = {"bicubic": flat(RED), "net": flat(BLUE), "other": flat(GREEN)}
    saved = [
        save_versions(folder / "report_files", "Flat", name, 2, flat(GREY, SIZE // 2), models, flat(GREEN))
        for name in ("first", "second")
    ]
    write_report(folder / "report.html", rows, saved, commands=["python evaluate.py ckpt=a.ckpt"], embedded=0)
    return folder / "report.html"


@pytest.fixture(scope="module")
def noise_page(tmp_path_factory):
    """One image, one model, two sets; noise, so that all places differ; pictures embedded."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    hr, bicubic, net = (rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(3))
    lr = rng.integers(0, 256, (3, SIZE // 3, SIZE // 3), dtype=np.uint8)
    rows = [row(m, i, 30.0, d, 3) for d in ("Noise", ODD) for m in ("bicubic", ODD) for i in (ODD, "mean")]
    models = {"bicubic": bicubic, ODD: net}
    saved = [save_versions(folder / "report_files", d, ODD, 3, lr, models, hr) for d in ("Noise", ODD)]
    write_report(folder / "report.html", rows, saved)
    return folder / "report.html", {"LR": lr.repeat(3, 1).repeat(3, 2), **models, "HR": hr}, saved[0].crops


def shot(page, selector):
    """Take a screenshot of an element, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"))


def stage_is_drawn(page, left="bicubic", right="net"):
    page.locator("#stage").scroll_into_view_if_needed()
    page.wait_for_function(
        "([left, right]) => document.getElementById('tag-left').textContent.startsWith(left)"
        " && document.getElementById('tag-right').textContent.startsWith(right)",
        arg=[left, right],
    )
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def colours(page, at=0.3):
    """Return the colours at 0.3 and 0.7 of the width of the image, at a share of the height of the stage."""
    picture = shot(page, "#stage")
    y = int(at * len(picture))
    drawn = np.flatnonzero(np.ptp(picture[y].astype(int), axis=-1) > 60)  # the flat colours, not the frame around them
    first, last = drawn[0], drawn[-1]
    return [tuple(int(v) for v in picture[y, first + int(f * (last - first))]) for f in (0.3, 0.7)]


def split(page):
    return int(page.locator("#divider").get_attribute("aria-valuenow"))


def pixels(page, box, number):
    """Read the first canvas in a box, (3, side, side); one canvas pixel is one HR pixel."""
    url = page.locator(box).nth(number).locator("canvas").first.evaluate("canvas => canvas.toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def eventually(check):
    """Wait until deferred work of the page makes a condition true."""
    for _ in range(100):
        if check():
            return
        time.sleep(0.1)
    assert check()


def test_divider_shows_one_version_on_each_side(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    assert (split(page), colours(page)) == (50, [RED, BLUE])
    divider, stage = page.locator("#divider").bounding_box(), page.locator("#stage").bounding_box()
    page.mouse.move(divider["x"] + 22, divider["y"] + 60)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.9, stage["y"] + 60, steps=4)
    page.mouse.up()
    assert split(page) > 75
    assert colours(page) == [RED, RED]
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + 60)  # whole image in sight: drag it anywhere
    page.mouse.down()
    page.mouse.move(stage["x"] + 5, stage["y"] + 60, steps=4)
    page.mouse.up()
    assert (split(page), colours(page)) == (0, [BLUE, BLUE])


def test_any_two_versions_can_be_compared(flat_page, visit):
    page = visit(flat_page)
    page.locator("#left").select_option("LR")
    page.locator("#right").select_option("HR")
    stage_is_drawn(page, "LR", "HR")
    assert colours(page)[1] == GREEN
    page.locator("#swap").click()
    stage_is_drawn(page, "HR", "LR")
    assert colours(page)[0] == GREEN
    assert page.locator("#left option").all_inner_texts() == [
        *("LR", "bicubic", "net", "other", "HR"),
        *("error of bicubic", "error of net", "error of other"),
    ]


def test_keyboard_reaches_every_control(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    order = []
    page.locator("#image").focus()
    for _ in range(8):
        focused = "document.activeElement, document.activeElement.id === 'divider' ? '::after' : null"
        outline = page.evaluate(f"getComputedStyle({focused}).outlineStyle")
        order.append((page.evaluate("document.activeElement.id"), outline))
        page.keyboard.press("Tab")
    ids = ["image", "previous", "next", "left", "swap", "right", "divider", "zoom-out"]
    assert [name for name, _ in order] == ids
    assert all(outline == "solid" for _, outline in order)
    page.locator("#divider").focus()
    for keys, expected in (
        (["ArrowRight"] * 5, 60),
        (["ArrowLeft"] * 2, 56),
        (["PageDown"], 46),
        (["End"], 100),
        (["Home"], 0),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert split(page) == expected
    assert (
        page.locator("#divider").get_attribute("aria-valuetext") == "0 %: bicubic on the left of it, net on the right"
    )

    for key, zoom in (("+", 8), ("+", 12), ("-", 8), ("0", 6)):  # 96 pixels fit six times
        page.keyboard.press(key)
        page.locator("#status").get_by_text(f"Zoom {zoom}×").wait_for()
    page.keyboard.press(".")
    assert page.locator("#image option:checked").inner_text() == "second"
    page.keyboard.press(",")
    assert page.locator("#image option:checked").inner_text() == "first"
    page.keyboard.press("x")
    stage_is_drawn(page, "net", "bicubic")
    page.keyboard.press("e")
    stage_is_drawn(page, "error of net", "error of bicubic")


def test_click_on_a_column_head_sorts_and_reverses(flat_page, visit):
    page = visit(flat_page)

    def column(table, number):
        return page.locator(f"{table} tbody tr > :nth-child({number})").all_inner_texts()

    assert column("#board-table", 1) == ["net", "other", "bicubic"]  # the best average first
    page.locator("#board-table").get_by_role("button", name="model").click()
    assert column("#board-table", 1) == ["bicubic", "net", "other"]
    page.locator("#board-table").get_by_role("button", name="PSNR (Y)").click()
    assert column("#board-table", 2) == ["30.00", "28.00", "27.50"]
    page.locator("#board-table").get_by_role("button", name="PSNR (Y)").press("Enter")
    assert column("#board-table", 2) == ["27.50", "28.00", "30.00"]
    assert page.locator("#board-table th[aria-sort=ascending]").inner_text() == "PSNR (Y)"
    page.locator("#images-table").get_by_role("button", name="other").click()
    assert column("#images-table", 1) == ["first", "second"]
    assert column("#images-table", 4) == ["32.00", "24.00"]
    page.locator("#score").select_option("gain in PSNR (Y)")
    assert column("#images-table", 3) == ["+2.00", "−1.00"]
    assert page.locator("#images-table tfoot td").all_inner_texts() == ["+2.50", "+0.50"]


def test_squares_show_the_same_pixels_of_every_version(noise_page, visit):
    path, versions, crops = noise_page
    page = visit(path)
    page.locator("#versions").scroll_into_view_if_needed()
    side, top, left = crops[0].size, crops[0].top, crops[0].left  # it opens at the largest gain
    for i, image in enumerate(versions.values()):
        place = image[:, top : top + side, left : left + side]
        eventually(lambda: np.array_equal(pixels(page, ".version", i), place))  # noqa: B023
    page.locator("#span").select_option("16")
    page.locator("#divider").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.locator("#status").get_by_text("Square: 16 pixels").wait_for()
    text = page.locator("#status").inner_text()
    new_left, top = (int(word) for word in text.split("at x ")[1].rstrip(".").split(", y "))
    assert new_left == left + 16 + 4  # the middle stays, and moves by a quarter of the side
    for i, image in enumerate(versions.values()):
        place = image[:, top : top + 16, new_left : new_left + 16]
        eventually(lambda: np.array_equal(pixels(page, ".version", i), place))  # noqa: B023


def test_zoom_enlarges_pixels_at_the_pointer_without_smoothing(noise_page, visit):
    path, versions, _ = noise_page
    page = visit(path)
    stage_is_drawn(page, "bicubic", ODD)
    page.locator("#right").select_option("bicubic")
    stage_is_drawn(page, "bicubic", "bicubic")
    for _ in range(12):
        page.locator("#zoom-in").click()
    page.evaluate("for (const id of ['mark', 'divider']) document.getElementById(id).style.visibility = 'hidden'")
    picture = shot(page, "#stage").transpose(2, 0, 1)[:, 60:-60, 60:-60]
    k = 32  # the largest
    phases = [
        (y, x)
        for y in range(k)
        for x in range(k)
        if np.array_equal(picture[:, y : y + k, x : x + k], picture[:, y : y + 1, x : x + 1].repeat(k, 1).repeat(k, 2))
    ]
    assert len(phases) == 1  # blocks of 32 x 32, at one offset
    (y, x) = phases[0]
    blocks = picture[:, y::k, x::k]
    blocks = blocks[:, : (picture.shape[1] - y) // k, : (picture.shape[2] - x) // k]
    assert np.array_equal(
        picture[:, y : y + k * blocks.shape[1], x : x + k * blocks.shape[2]], blocks.repeat(k, 1).repeat(k, 2)
    )
    windows = np.lib.stride_tricks.sliding_window_view(versions["bicubic"], blocks.shape)[0]
    assert (windows == blocks).all(axis=(-3, -2, -1)).any()  # a part of the image
    page.locator("#zoom-fit").click()
    before = shot(page, "#stage")
    box = page.locator("#stage").bounding_box()
    y, x = len(before) // 2 - 40, before.shape[1] // 2 + 60
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    after = shot(page, "#stage")
    assert np.array_equal(after[y, x], before[y, x])
    assert not np.array_equal(after, before)


def test_error_maps_are_dark_without_error_and_bright_with(flat_page, visit):
    page = visit(flat_page)
    page.locator("#left").select_option("error of other")  # equals HR
    page.locator("#right").select_option("error of net")
    stage_is_drawn(page, "error of other", "error of net")
    picture = shot(page, "#stage")
    y, centre = int(0.3 * len(picture)), picture.shape[1] // 2
    dark, bright = picture[y, centre - 60].astype(int), picture[y, centre + 60].astype(int)
    assert dark.max() < 10
    assert bright.min() > 150
    page.locator("#amplify").select_option("1")
    error = (0.299 * abs(30 - 30) + 0.587 * abs(60 - 190) + 0.114 * abs(210 - 60)) / 255
    stops = {"red": [0, 0.26, 0.58, 0.87, 0.99, 0.99], "green": [0, 0.04, 0.15, 0.32, 0.65, 1]}
    expected = [255 * np.interp(error, np.linspace(0, 1, 6), stop) for stop in stops.values()]
    assert shot(page, "#stage")[y, centre + 60][:2] == pytest.approx(expected, abs=3)


def test_crop_opens_in_the_viewer(noise_page, visit):
    path, versions, crops = noise_page
    page = visit(path)
    gains = sorted((crop for crop in crops if crop.gain > 0), key=lambda crop: -crop.gain)
    cards = page.locator("#gains .crop")
    assert cards.count() == len(gains)
    cards.last.scroll_into_view_if_needed()
    crop = gains[-1]
    place = np.s_[:, crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
    eventually(lambda: np.array_equal(pixels(page, "#gains .crop", len(gains) - 1), versions["bicubic"][place]))
    cards.last.click()
    page.locator("#status").get_by_text(f"Square: {crop.size} pixels at x {crop.left}, y {crop.top}.").wait_for()
    assert page.evaluate("document.activeElement.id") == "divider"


def test_gains_and_losses_are_sorted_by_the_decibels_shown(tmp_path, visit):
    rng = np.random.default_rng(3)
    hr = np.zeros((3, 48, 192), np.uint8) + 100
    bicubic, net = hr.copy(), hr.copy()
    bicubic[..., ::3], net[..., ::3] = 160, 140  # by squared error, the largest gain
    bicubic[:, :, 96:], net[:, :, 96:] = 100, 100
    bicubic[:, :, 96::4], net[:, :, 96::16] = 104, 101  # in dB, the largest
    noisy = np.clip(hr + rng.integers(-2, 3, hr.shape), 0, 255).astype(np.uint8)
    models = {"bicubic": bicubic, "net": net}
    rows = [row(m, i, 30.0) for m in models for i in ("a", "mean")]
    saved = [save_versions(tmp_path / "report_files", "Flat", "a", 2, noisy[:, ::2, ::2], models, hr)]
    write_report(tmp_path / "report.html", rows, saved)
    crops = [crop for crop in saved[0].crops if crop.gain > 0]
    by_decibels = sorted((crop.psnr - crop.bicubic for crop in crops), reverse=True)
    assert [crop.psnr - crop.bicubic for crop in crops] != by_decibels  # they are found by squared error
    shown = visit(tmp_path / "report.html").locator("#gains .up").all_inner_texts()
    assert shown == [f"+{gain:.2f}" for gain in by_decibels]


def test_head_describes_the_networks_and_draws_their_curves(tmp_path, visit):
    curves = {ODD: [(100, 30.0), (200, float("nan")), (300, 31.0), (400, 30.5)], "new": []}
    subjects = [{"model": name, "facts": {"seed": "7", ODD: ODD}, "curve": curve} for name, curve in curves.items()]
    write_report(tmp_path / "report.html", [row(ODD, "a", 30.0), row("new", "a", 30.0)], subjects=subjects)
    page = visit(tmp_path / "report.html")
    assert page.locator("h1").inner_text() == f"{ODD}, new: Flat ×2"
    assert page.locator(".subject h3").all_inner_texts() == [ODD, "new"]
    assert page.locator(".subject").first.locator("dd").all_inner_texts() == ["7", ODD]
    text = f"Validation of {ODD}: 30.00 dB at step 100, 30.50 at 400, highest 31.00 at 300"
    assert page.locator(".subject svg").get_attribute("aria-label") == text
    assert len(page.locator(".curve polyline").get_attribute("points").split()) == 3


def test_many_networks_are_folded_above_the_table(tmp_path, visit):
    for number in (4, 5):
        path = tmp_path / f"{number}.html"
        subjects = [{"model": f"net {i}", "facts": {"seed": "7"}, "curve": []} for i in range(number)]
        write_report(path, [row("net", "a", 30.0)], subjects=subjects)
        page = visit(path)
        assert page.locator(".subject:visible").count() == (4 if number == 4 else 0)
        assert page.locator("#networks summary:visible").count() == (number == 5)
    page.locator("#networks summary").click()
    assert page.locator(".subject:visible").count() == 5


def test_crop_has_an_address(flat_page, visit):
    page = visit(flat_page)
    page.locator("#image").select_option("second")
    page.locator("#right").select_option("HR")
    stage_is_drawn(page, "bicubic", "HR")
    page.locator("#zoom-in").click()
    page.locator("#status").get_by_text("Zoom 8×").wait_for()
    other = visit(flat_page, page.evaluate("location.hash"))
    stage_is_drawn(other, "bicubic", "HR")
    other.locator("#status").get_by_text("second, 96×96, 2 of 2. Zoom 8×").wait_for()
    assert other.locator("#status").inner_text() == page.locator("#status").inner_text()


def test_partly_wrong_address_is_followed_where_valid(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    page.evaluate("location.hash = '#s=0&i=1&l=e1&r=e2&x=abc&y=&z=1e9&p=-5'")
    stage_is_drawn(page, "error of bicubic", "error of net")
    page.locator("#status").get_by_text("second, 96×96, 2 of 2. Zoom 32×. Square: 48 pixels at x ").wait_for()
    assert page.locator("#errors").is_checked()  # the squares show what the sides show
    page.get_by_role("link", name="Images").click()
    page.wait_for_timeout(400)
    assert "i=1" in page.evaluate("location.hash")  # that of the place, still
    page.evaluate("location.hash = '#s=7&i=9'")
    page.wait_for_timeout(400)
    assert page.locator("#image option:checked").inner_text() == "second"


def test_address_set_just_before_the_page_stores_its_place_is_followed(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    page.evaluate("""() => {
        location.hash = '#s=0&i=1&l=1&r=HR';
        history.replaceState(null, '', '#s=0&i=0');  // what the page does before the event reaches it
    }""")
    page.wait_for_function("document.querySelector('#image option:checked').innerText === 'second'")


def test_image_row_is_one_tab_stop_and_keeps_focus(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    thumbs = page.locator("#strip button")
    assert thumbs.evaluate_all("all => all.map(node => node.tabIndex)") == [0, -1]
    thumbs.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#image option:checked").inner_text() == "second"
    assert page.evaluate("document.activeElement.title") == "second"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "image"
    page.locator(".version").nth(2).focus()
    page.keyboard.press(",")
    assert page.locator("#image option:checked").inner_text() == "first"
    assert page.evaluate("document.activeElement.dataset.version") == "2"
    page.locator("#errors").focus()
    page.keyboard.press(".")
    assert page.locator("#image option:checked").inner_text() == "second"


def test_small_trackpad_pinch_is_a_small_step(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 100)
    page.keyboard.down("Control")
    for _ in range(12):
        page.mouse.wheel(0, -3)
    page.keyboard.up("Control")
    page.locator("#status").get_by_text("Zoom 8×").wait_for()  # from 6


def test_hidden_version_has_no_label(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    page.locator("#divider").focus()
    for key, left, right in (("End", True, False), ("Home", False, True), ("PageUp", True, True)):
        page.keyboard.press(key)
        assert (page.locator("#tag-left").is_visible(), page.locator("#tag-right").is_visible()) == (left, right)


def test_low_window_has_a_low_viewer(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    page.set_viewport_size({"width": 1200, "height": 450})
    eventually(lambda: page.locator("#stage").bounding_box()["height"] < 330)


def test_best_fine_detail_is_closest_to_hr(tmp_path, visit):
    energies = {"bicubic": 0.02, "flat": 0.3, "near": 1.1, "noisy": 1.9}
    rows = [row(m, i, 30.0) | {"spectrum": e, "consistency": 50.123} for m, e in energies.items() for i in "ab"]
    rows += [row(m, "mean", 30.0) | {"spectrum": e, "consistency": 50.123} for m, e in energies.items()]
    write_report(tmp_path / "report.html", rows)
    page = visit(tmp_path / "report.html")
    assert page.locator("#board-table td.best").all_inner_texts() == ["1.100"]
    assert page.locator("#board-table tbody tr").first.locator("td").nth(3).inner_text() == "50.12"
    page.locator("#score").select_option("spectrum")
    colours = (
        page.locator("#images-table tbody tr")
        .first.locator("td")
        .evaluate_all("cells => cells.map(cell => cell.style.background)")
    )
    assert ["gain" in colour for colour in colours] == [False, True, True, True]
    strength = [float(colour.split("%")[0].split()[-1]) for colour in colours[1:]]
    assert strength[1] > strength[0] > strength[2]


def test_print_is_complete(flat_page, noise_page, visit):
    for path, inside in ((flat_page, False), (noise_page[0], True)):
        page = visit(path, height=300)
        page.locator("#status").get_by_text("Zoom").wait_for()
        page.emulate_media(media="print")
        cards = page.locator("#crops .crop").count()
        assert cards
        if not inside:
            assert page.locator("#crops .crop:visible").count() < cards  # not drawn yet, so not shown empty
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
        eventually(lambda: page.locator("#crops .crop:visible").count() == cards)  # noqa: B023
        assert not page.locator("nav").is_visible() and not page.locator("#strip").is_visible()
        assert page.locator("#images-table .tall").evaluate("node => getComputedStyle(node).maxHeight") == "none"


def test_odd_names_are_shown_literally_and_sets_are_chosen(noise_page, visit):
    page = visit(noise_page[0])
    assert page.locator("#set option").all_inner_texts() == ["Noise ×3", f"{ODD} ×3"]
    assert page.title() == f"{ODD}: Noise ×3, {ODD} ×3"
    page.locator("#set").select_option(f"{ODD} ×3")
    stage_is_drawn(page, "bicubic", ODD)
    assert page.locator("#image option").all_inner_texts() == [ODD]
    assert page.locator("#images-table tbody th").inner_text() == ODD
    assert page.locator("img[src=x]").count() == 0


def test_pictures_load_when_shown(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    assert not [url for url in page.requests if "/second/" in url and "LR" not in url]
    page.locator("#next").click()
    stage_is_drawn(page)
    page.locator("#versions").scroll_into_view_if_needed()
    eventually(lambda: page.title() and [url for url in page.requests if "/second/HR" in url])


def test_missing_picture_is_reported(flat_page, visit, tmp_path):
    shutil.copytree(flat_page.parent, tmp_path / "copy")
    (gone,) = (tmp_path / "copy").rglob("Flat_x2/first/model_net.webp")
    gone.unlink()
    page = visit(tmp_path / "copy" / "report.html")
    page.locator("#tag-right").get_by_text("no picture").wait_for()
    page.complaints = [text for text in page.complaints if "ERR_FILE_NOT_FOUND" not in text]
    assert colours(page)[0] == RED


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_needs_no_horizontal_scrolling(flat_page, noise_page, visit, scheme):
    for path in (flat_page, noise_page[0]):
        page = visit(path, width=360, height=740, color_scheme=scheme, has_touch=True)
        page.locator("#stage").scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        beyond = """[...document.querySelectorAll("main *")].filter(node => node.getBoundingClientRect().right > 361
            && !node.closest(".scroll, #strip")).map(node => node.outerHTML)"""
        assert page.evaluate(beyond) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


def test_phone_has_large_targets_and_says_that_a_table_has_more_columns(flat_page, visit):
    page = visit(flat_page, width=390, height=844, has_touch=True)
    stage_is_drawn(page)
    small = """[...document.querySelectorAll("button, select, summary, nav a, main label")].filter(node =>
        node.offsetParent && Math.min(node.offsetWidth, node.offsetHeight) < 44).map(node => node.outerHTML)"""
    assert page.evaluate(small) == []
    more = "document.querySelector('#board-table .wide').classList.contains('more')"
    assert page.evaluate(more)
    left = page.locator("#board-table tbody th").first.bounding_box()["x"]
    page.locator("#board-table .scroll").evaluate("node => node.scrollLeft = node.scrollWidth")
    eventually(lambda: not page.evaluate(more))
    assert page.locator("#board-table tbody th").first.bounding_box()["x"] == left  # the names stay
    wide = visit(flat_page)
    assert wide.locator(".wide.more").count() == 0


@pytest.mark.parametrize("width", [1200, 390])
def test_versions_side_by_side_move_and_zoom_together(noise_page, visit, width):
    path = noise_page[0]
    page = visit(path, width=width)
    stage_is_drawn(page, "bicubic", ODD)
    page.locator("#two-up").click()
    page.locator("#stage").scroll_into_view_if_needed()
    page.evaluate("for (const tag of document.querySelectorAll('.tag')) tag.hidden = true")
    for _ in range(3):
        page.keyboard.press("+")
    stage = page.locator("#stage").bounding_box()
    second = (0.75, 0.5) if width > 560 else (0.5, 0.75)  # the middle of the second pane
    at = [stage[key] + share * stage[side] for key, share, side in zip("xy", second, ("width", "height"), strict=True)]
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] + 60, at[1] - 20, steps=3)
    page.mouse.up()
    page.mouse.click(at[0] + 10, at[1] + 10)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.locator("#status").get_by_text("Square: ").wait_for()

    def panes():
        for mark in page.locator(".mark").all():
            mark.evaluate("node => node.style.visibility = 'hidden'")
        picture = shot(page, "#stage")[1:-1, 1:-1]  # without its border
        half = picture.shape[1 - (width < 560)] // 2
        first, second = slice(0, half), slice(half, 2 * half)
        return (picture[:, first], picture[:, second]) if width > 560 else (picture[first], picture[second])

    assert not np.array_equal(*[pane[9:-9, 9:-9] for pane in panes()])
    page.locator("#right").select_option("bicubic")
    stage_is_drawn(page, "bicubic", "bicubic")
    first, second = (pane[9:-9, 9:-9] for pane in panes())
    assert np.array_equal(first, second)
    boxes = [mark.bounding_box() for mark in page.locator(".mark").all()]
    assert [b - a for a, b in zip(*([box["x"], box["y"]] for box in boxes), strict=True)] == pytest.approx(
        [(stage["width"] - 2) // 2, 0] if width > 560 else [0, (stage["height"] - 2) // 2]
    )
    eventually(lambda: "t=2" in page.evaluate("location.hash"))
    again = visit(path, page.evaluate("location.hash"), width=width)
    again.locator("#two-up[aria-pressed=true]").wait_for()


def saved_file(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    name = download.value.suggested_filename
    return name, np.asarray(Image.open(download.value.path()).convert("RGB")).transpose(2, 0, 1)


def test_crop_and_figure_are_saved_as_png(noise_page, visit):
    path, versions, _ = noise_page
    page = visit(path)
    stage_is_drawn(page, "bicubic", ODD)
    page.locator("#span").select_option("32")
    page.locator("#right").select_option("bicubic")
    stage_is_drawn(page, "bicubic", "bicubic")
    page.locator("#status").get_by_text("Square: 32 pixels").wait_for()
    left, top = (int(w) for w in page.locator("#status").inner_text().split("at x ")[1].rstrip(".").split(", y "))
    place = np.s_[:, top : top + 32, left : left + 32]
    name, crop = saved_file(page, "#save-crop")
    assert name.endswith(f"x{left}_y{top}_32_bicubic.png") and np.array_equal(crop, versions["bicubic"][place])
    name, figure = saved_file(page, "#save-figure")
    assert name.endswith("figure.png")
    step = 7 * 32  # the side of an enlarged square
    for number, version in enumerate(("HR", "LR", "bicubic", ODD)):
        y = (number // 2) * (step + 2 * 24 + 8)
        x = figure.shape[2] - 2 * step - 8 + (number % 2) * (step + 8)
        assert np.array_equal(figure[:, y : y + step, x : x + step], versions[version][place].repeat(7, 1).repeat(7, 2))


def test_pictures_that_a_browser_does_not_save_are_explained(flat_page, visit):
    page = visit(flat_page)
    stage_is_drawn(page)
    for button in ("#save-crop", "#save-figure"):
        page.evaluate("document.getElementById('saved').textContent = ''")
        page.locator(button).click()
        page.locator("#saved").get_by_text("use python -m sr_lightning.figure").wait_for()


def test_touch_moves_the_divider_unless_it_scrolls(flat_page, visit):
    page = visit(flat_page, width=360, height=740, has_touch=True, is_mobile=True)
    stage_is_drawn(page)
    touch = page.context.new_cdp_session(page)

    def swipe(right, down):
        box = page.locator("#stage").bounding_box()
        x, y = box["x"] + 150, box["y"] + box["height"] / 2
        for i in range(9):
            point = {"x": x + i * right, "y": y + i * down}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove" if i else "touchStart", "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    swipe(15, 1)
    moved = split(page)
    assert moved > 75
    before = page.evaluate("scrollY")
    swipe(1, -12)
    eventually(lambda: page.evaluate("scrollY") > before)
    assert split(page) == moved


def test_report_of_bicubic_alone(tmp_path, visit):
    saved = save_versions(
        tmp_path / "report_files", "Set", "a", 2, flat(GREY, 8), {"bicubic": flat(RED, 16)}, flat(BLUE, 16)
    )
    write_report(tmp_path / "report.html", [row("bicubic", image, 30.0, "Set") for image in ("a", "mean")], [saved])
    page = visit(tmp_path / "report.html")
    stage_is_drawn(page, "bicubic", "HR")
    assert colours(page) == [RED, BLUE]
    assert not page.locator("#crops").is_visible()


def test_report_without_pictures(tmp_path, visit):
    leaderboard = [{"run": "a", "psnr": 30.0, "steps": 5000}, {"run": "b", "psnr": None, "steps": 700}]
    write_report(tmp_path / "report.html", [row("net", "a", float("inf"))], leaderboard=leaderboard)
    page = visit(tmp_path / "report.html")
    assert not page.locator("#viewer").is_visible()
    assert page.locator("#images-table tbody td").all_inner_texts() == ["∞"]
    page.locator("#board-table").get_by_role("button", name="steps").click()
    assert page.locator("#board-table tbody tr").all_inner_texts() == ["a\t30.00\t5,000", "b\t–\t700"]
