"""The page in a real browser, with Gradio."""

import importlib.util
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from sr_lightning import load
from tests.helpers import Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="not installed: gradio (pip install 'sr_lightning[app]')"
    ),
]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder for temporary files of the server."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def app(trained, folder, chromium):
    """The command, with a limit of 40,000 pixels."""
    words = ("-m", "sr_lightning.app", "-c", trained, "--port", 0, "--max-pixels", 40_000)
    running = Command(*words, environment={"TMPDIR": str(folder)})
    running.wait_for_output("Ctrl-C")
    yield running
    if running.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def address(app):
    return app.outputs[0].read_text().partition(";")[0]


@pytest.fixture
def visit(chromium, address):
    """Open the page in a new session of the browser; after the test, check that it asked only this machine."""
    contexts, requests = [], []

    def opened(width=1200):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    hosts = {urlparse(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def give(page, path):
    page.locator("input[type=file]").first.set_input_files(path)
    page.locator("#status", has_text=path.name).wait_for()


def message(page):
    return page.get_by_role("alert").inner_text()


@pytest.mark.parametrize(("width", "suffix"), [(1200, "png"), (390, "tif")])
def test_a_photo_becomes_a_comparison_and_a_download_equal_to_the_upscaler(
    visit, folder, trained, pictures, tmp_path, width, suffix
):
    page, file = visit(width), tmp_path / f"0.{suffix}"
    with Image.open(pictures / "0.png") as photo:
        photo.save(file)
    give(page, file)
    page.wait_for_function("[...document.images].some(image => image.naturalWidth == 80)")  # shown, also a TIFF
    page.get_by_role("button", name="Enlarge").click()
    download = page.get_by_text("Download best.ckpt (PNG)")
    download.wait_for()
    assert page.locator("#status").inner_text() == f"0.{suffix} x2: 160x192 pixels"
    page.wait_for_function("document.querySelectorAll('#divider img').length >= 2")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    with page.expect_download() as event:
        download.click()
    assert event.value.suggested_filename == "0_best.ckpt_x2.png"
    event.value.save_as(tmp_path / "result.png")
    with Image.open(tmp_path / "result.png") as result, Image.open(pictures / "0.png") as photo:
        assert np.array_equal(result, load(trained).upscale(photo))
    assert files_below(folder)
    page.context.close()
    wait_for(lambda: not files_below(folder))


def test_what_is_no_photo_or_too_large_is_one_sentence_and_is_not_computed(visit, folder, tmp_path):
    (tmp_path / "text.png").write_text("text")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    page = visit()
    give(page, tmp_path / "text.png")
    assert message(page).startswith("text.png: not an image that Pillow can read")
    Image.new("RGB", (80, 80)).save(tmp_path / "cut.tif")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:9000])
    give(page, tmp_path / "cut.tif")
    assert message(page).startswith("cut.tif: ")
    give(page, tmp_path / "huge.png")
    assert message(page) == (
        "huge.png: 20000x10000 pixels, of which x2 makes 800,000,000; the limit of this page is 40,000"
    )
    page.get_by_role("button", name="Enlarge").click()
    page.get_by_text("Drop a photo first").wait_for()
    assert {path.name for path in files_below(folder)} == {"text.png", "cut.tif", "huge.png"}  # no result


def test_names_of_files_are_no_markup(visit, tmp_path):
    (tmp_path / "&lt;b&gt;.png").write_text("text")
    page = visit()
    give(page, tmp_path / "&lt;b&gt;.png")
    assert "not an image" in message(page) and page.locator("[role=alert] *").count() == 0


def test_ctrl_c_ends_with_one_line_and_no_files(app, visit, folder, pictures):
    page = visit()
    give(page, pictures / "0.png")
    wait_for(lambda: files_below(folder))
    assert app.outputs[1].read_text() == "" and app.outputs[0].read_text().count("\n") == 1
    os.kill(app.pid, signal.SIGINT)
    done = app.wait()
    assert done.returncode == 130 and done.stderr.count("\n") == 1 and done.stderr.startswith("stopped by SIGINT")
    assert list(folder.iterdir()) == []
