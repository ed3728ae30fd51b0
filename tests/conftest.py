"""Shared fixtures: real and small images, commands of short trainings, a server, a checkpoint, a browser."""

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import types
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from sr_lightning.utils import download
from tests.helpers import Server
from tests.hub_server import Hub

# One thread, also in the processes that tests start: results are the same bits on every machine, and on a busy machine
# no thread waits for another.
os.environ["OMP_NUM_THREADS"] = "1"

# Commands of tests get signals even if those who run the tests ignore them, as nohup and a shell's background do.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Times measured in tests are not those of an idle machine: they stay out of the user's cache.
_cache = tempfile.TemporaryDirectory(prefix="sr_lightning_tests_")
os.environ["SR_CACHE_DIR"] = _cache.name


LONGEST_FILES = ("test_resume.py", "test_sweeps.py", "test_export.py", "test_ddp.py", "test_slurm.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: a long file that starts last leaves the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONGEST_FILES, item.path not in slow))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give a test the same random numbers whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder in SR_DATA_ROOT (T91/, BSDS500/, benchmark/); without it the test is skipped."""
    root = os.environ.get("SR_DATA_ROOT")
    if not root:
        pytest.skip("SR_DATA_ROOT is not set: this test needs the real images")
    if not Path(root, "benchmark", "Set5", "HR").is_dir():
        pytest.skip(f"SR_DATA_ROOT={root} holds no benchmark/Set5/HR")
    return Path(root)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Six smooth 96x80 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        coarse.resize((80, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def command(pictures, short):
    """The arguments of a short training on the small pictures; tests append their own."""
    return [*short, "data=folder", f"data.hr={pictures}", "data.val_fraction=0.3"]


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """The arguments of a short training."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        "train.py",
        *("data.patch_size=8", "data.batch_size=4", "max_steps=30", "val_every=10", "log_every=5", "save_every=10"),
        *(f"cache_dir={cache}", "benchmarks=[]", "trainer=cpu", "trainer.precision=32-true", "num_comparisons=1"),
    ]


@pytest.fixture
def server(monkeypatch):
    """A server to download from, without pauses between retries."""
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of a Hugging Face hub, and an empty cache."""
    hub = Hub()
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("SR_CACHE_DIR", str(tmp_path / "cache"))
    yield hub
    hub.close()


@pytest.fixture
def small_fid(monkeypatch):
    """FID of the mean and the deviation of each colour, in place of Inception's 2048 features."""
    import torch

    from sr_lightning.metrics import extra, perceptual

    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, images):
            x = images.float() / 255
            return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], 1)

    monkeypatch.setattr(perceptual, "inception", Features)
    monkeypatch.setitem(extra.NETWORKS, "fid", Features)
    return Features()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A checkpoint in the format of train.py: an ESPCN x2 called tiny, with random weights."""
    import torch

    from sr_lightning.networks import ESPCN

    description = {"scale": 2, "num_features": [4], "kernel_sizes": [3, 3]}
    torch.manual_seed(0)
    checkpoint = {
        "state_dict": {f"network.{key}": value for key, value in ESPCN(**description).state_dict().items()},
        "hyper_parameters": {
            "name": "tiny",
            "model": {"network": description | {"_target_": "sr_lightning.networks.ESPCN"}},
        },
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"processed": 30}}}},
    }
    path = tmp_path_factory.mktemp("trained") / "best.ckpt"
    torch.save(checkpoint, path)
    return path


def missing(what: str) -> None:
    """Skip the test; fail it if CI_BROWSER=1, which requires the browser tests to run."""
    if os.environ.get("CI_BROWSER") == "1":
        pytest.fail(f"CI_BROWSER=1, but there is {what}")
    pytest.skip(f"there is {what}")


@pytest.fixture(scope="module")
def chromium():
    """Debian's or Playwright's chromium."""
    try:
        from playwright import sync_api as playwright
    except ImportError:
        missing("no playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or driver.chromium.executable_path
        if not Path(found).exists():
            missing("no chromium: apt-get install chromium, or playwright install chromium")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def blank_pages() -> list:
    """Pages that tests have left, to be used again: a new one is a process of the browser."""
    return []


@pytest.fixture
def visit(chromium, blank_pages):
    """Open pages; after the test, check that they had no errors and requested only files beside them."""
    visits = []

    def opened(path, fragment="", width=1200, height=900, **options):
        is_usual = (width, height, options) == (1200, 900, {})
        page = blank_pages.pop() if is_usual and blank_pages else new_page(width, height, options)
        page.complaints, page.requests = [], []
        page.goto(f"{path.as_uri()}{fragment}")
        visits.append((path, page, is_usual))
        return page

    def new_page(width, height, options):
        page = chromium.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.requests.append(unquote(request.url)))
        return page

    yield opened
    for path, page, is_usual in visits:
        outside = [url for url in page.requests if not url.startswith(("data:", f"file://{path.parent}"))]
        complaints = page.complaints
        if is_usual:
            page.mouse.move(0, 0)
            page.set_viewport_size({"width": 1200, "height": 900})
            page.goto("about:blank")
            blank_pages.append(page)
        else:
            page.context.close()
        assert (complaints, outside) == ([], [])


@pytest.fixture
def spandrel(monkeypatch):
    """The package spandrel. It wants torchvision, of which the networks here use nothing, so that stubs serve."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("not installed: spandrel (pip install --no-deps spandrel einops)")
    functional = types.ModuleType("torchvision.transforms.functional")
    functional.InterpolationMode = functional.normalize = functional.rotate = None
    transforms = types.ModuleType("torchvision.transforms")
    transforms.functional = functional
    for name, module in {"": types.ModuleType("torchvision"), ".transforms": transforms}.items():
        monkeypatch.setitem(sys.modules, f"torchvision{name}", module)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional", functional)
    return importlib.import_module("spandrel")
