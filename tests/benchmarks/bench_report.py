"""report.html of 100 images and 10 models: time to write its pictures, its page, and to open it; its size.

python tests/benchmarks/bench_report.py [folder of images, such as BSD100's HR]
"""

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from sr_lightning.evaluation.report import save_versions, write_report

IMAGES, MODELS, SCALE = 100, 10, 4


def photo(seed: int) -> Image.Image:
    """480x320 of smooth shapes and grain: about as large in a file as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).resize((480, 320), Image.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 2, (320, 480, 1))).clip(0, 255).astype(np.uint8))


def versions_of(image: Image.Image) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """LR, models between bicubic and HR, and HR, as planes."""
    width, height = (side // SCALE * SCALE for side in image.size)
    hr = image.convert("RGB").crop((0, 0, width, height))
    lr = hr.resize((width // SCALE, height // SCALE), Image.BICUBIC)
    bicubic = lr.resize(hr.size, Image.BICUBIC)
    models = {"bicubic": bicubic} | {f"model {i}": Image.blend(bicubic, hr, i / 2 / MODELS) for i in range(1, MODELS)}
    planes = {name: np.asarray(picture).transpose(2, 0, 1) for name, picture in models.items()}
    return np.asarray(lr).transpose(2, 0, 1), planes, np.asarray(hr).transpose(2, 0, 1)


def open_page(path: Path) -> str:
    """Seconds until the page is loaded and its first image compared, if there is a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "not opened: pip install playwright"
    chromium = shutil.which("chromium")
    if chromium is None:
        return "not opened: no chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        times = []
        for _ in range(5):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(path.as_uri())
            loaded = time.perf_counter()
            page.wait_for_function("document.getElementById('tag-left').textContent")
            times.append((loaded - start, time.perf_counter() - start))
            page.close()
        browser.close()
    loaded, shown = sorted(times)[len(times) // 2]
    return f"opened in {loaded:.2f} s, first image compared after {shown:.2f} s (medians of {len(times)})"


def main():
    files = sorted(Path(sys.argv[1]).iterdir())[:IMAGES] if len(sys.argv) > 1 else []
    images = (Image.open(file) for file in files) if files else (photo(seed) for seed in range(IMAGES))
    rows, saved, seconds, as_png = [], [], 0.0, [0.0, 0]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        for i, image in enumerate(images):
            lr, models, hr = versions_of(image)
            start = time.perf_counter()
            saved.append(save_versions(Path(folder, "report_files"), "Set", f"{i}", SCALE, lr, models, hr))
            seconds += time.perf_counter() - start
            start = time.perf_counter()
            for planes in (lr, *models.values(), hr):
                Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(png := io.BytesIO(), format="PNG")
                as_png[1] += png.tell()
            as_png[0] += time.perf_counter() - start
            for name, planes in models.items():
                psnr = 10 * np.log10(255**2 / ((planes.astype(float) - hr) ** 2).mean())
                row = {"model": name, "scale": SCALE, "dataset": "Set", "image": f"{i}", "psnr_y": psnr, "ssim_y": 0.9}
                rows.append(row | {"protocol": "a benchmark's"})
        start = time.perf_counter()
        size = write_report(page, rows, saved)
        writing = time.perf_counter() - start
        count = sum(len(versions.files) for versions in saved)
        print(f"{len(saved)} images x {len(models)} models: {count} pictures, {size / 1e6:.1f} MB")
        print(f"pictures and places: {seconds:.1f} s, {1e3 * seconds / count:.0f} ms a picture")
        print(f"  PNG in memory alone: {as_png[0] / seconds:.2f} of the time, {as_png[1] / size:.2f} of the size")
        print(f"page: {writing:.2f} s, {page.stat().st_size / 1e6:.2f} MB; {open_page(page)}")


if __name__ == "__main__":
    main()
