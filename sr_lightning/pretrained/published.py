"""Well-known weights of other projects, by name: downloaded when they are first used, and verified.

A file is listed only with a digest that somebody else states, which the comment names. The licence is that which the
source states for the weights, or for the repository that publishes them.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sr_lightning.utils.download import download
from sr_lightning.utils.timings import cache_dir

log = logging.getLogger(__name__)

REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"
EDSR = "https://cv.snu.ac.kr/research/EDSR/models"
OPEN_MODEL_DB = "OpenModelDB"


@dataclass(frozen=True)
class Published:
    """A file of weights.

    Attributes:
        url: Its address.
        network: Class and what it was trained for.
        scale: The factor.
        licence: As stated by the source.
        sha256: Its digest, or the first digits of it.
        stated_by: Who states the digest.
    """

    url: str
    network: str
    scale: int
    licence: str
    sha256: str
    stated_by: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def _edsr(name: str, digits: str) -> Published:
    """Return a file of EDSR-PyTorch, named by the first digits of its sha256, as torch.hub's `check_hash` reads them.

    The addresses are in sanghyun-son/EDSR-PyTorch, src/model/edsr.py.
    """
    url, licence = f"{EDSR}/{name}-{digits}.pt", "MIT (of the code)"
    return Published(url, "EDSR, bicubic LR", int(name[-1]), licence, digits, "8 digits in the file's name")


PUBLISHED = {
    # OpenModelDB/open-model-database: data/models/4x-realesrgan-x4plus.json, 2x-realesrgan-x2plus.json,
    # 4x-realesrgan-x4plus-anime-6b.json, 4x-realesr-animevideo-v3.json, 4x-realesr-general-x4v3.json,
    # 4x-realesr-general-wdn-x4v3.json, 4x-BSRGAN.json
    "RealESRGAN_x4plus": Published(
        f"{REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth",
        "RRDBNet, photos with defects",
        4,
        "BSD-3-Clause",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        OPEN_MODEL_DB,
    ),
    "RealESRGAN_x2plus": Published(
        f"{REAL_ESRGAN}/v0.2.1/RealESRGAN_x2plus.pth",
        "RRDBNet, photos with defects",
        2,
        "BSD-3-Clause",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        OPEN_MODEL_DB,
    ),
    "RealESRGAN_x4plus_anime_6B": Published(
        f"{REAL_ESRGAN}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        "RRDBNet, drawings",
        4,
        "BSD-3-Clause",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        OPEN_MODEL_DB,
    ),
    "realesr-animevideov3": Published(
        f"{REAL_ESRGAN}/v0.2.5.0/realesr-animevideov3.pth",
        "Compact, videos of drawings",
        4,
        "BSD-3-Clause",
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        OPEN_MODEL_DB,
    ),
    "realesr-general-x4v3": Published(
        f"{REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth",
        "Compact, photos with defects",
        4,
        "BSD-3-Clause",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        OPEN_MODEL_DB,
    ),
    "realesr-general-wdn-x4v3": Published(
        f"{REAL_ESRGAN}/v0.2.5.0/realesr-general-wdn-x4v3.pth",
        "Compact, photos with noise",
        4,
        "BSD-3-Clause",
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        OPEN_MODEL_DB,
    ),
    "BSRGAN": Published(
        "https://github.com/cszn/KAIR/releases/download/v1.0/BSRGAN.pth",
        "RRDBNet, photos with defects",
        4,
        "Apache-2.0",
        "5d505a0766160921e0388d76e1ddf08cb114303990f9080432bf2b1c988b1c54",
        OPEN_MODEL_DB,
    ),
    # PKGBUILD of the package python-realesrgan 0.2.3.0 for Arch Linux
    "RealESRNet_x4plus": Published(
        f"{REAL_ESRGAN}/v0.1.1/RealESRNet_x4plus.pth",
        "RRDBNet without GAN, photos with defects",
        4,
        "BSD-3-Clause",
        "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        "python-realesrgan's PKGBUILD",
    ),
    # TensoRaws/ccrestoration, ccrestoration/config/swinir_config.py, for its own copy of the file
    "SwinIR-S_x2": Published(
        "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2.pth",
        "SwinIR light, bicubic LR",
        2,
        "Apache-2.0",
        "193b229909ca89cd8b55de9c9e7fce146ae759d59dfcd78d8feb9dd1d6fa0fd7",
        "ccrestoration",
    ),
    "edsr_baseline_x2": _edsr("edsr_baseline_x2", "1bc95232"),
    "edsr_baseline_x3": _edsr("edsr_baseline_x3", "abf2a44e"),
    "edsr_baseline_x4": _edsr("edsr_baseline_x4", "6b446fab"),
    "edsr_x2": _edsr("edsr_x2", "0edfb8a3"),
    "edsr_x3": _edsr("edsr_x3", "ea3ef2c6"),
    "edsr_x4": _edsr("edsr_x4", "4f62e9ef"),
}


def published_weights(name: str) -> Path:
    """Return a file of PUBLISHED, downloaded once and verified at each use.

    Raises:
        InputError: As of `download`.
    """
    entry = PUBLISHED[name]
    path = cache_dir() / "weights" / entry.file
    if not path.exists():
        log.info("%s comes from %s; licence: %s", name, entry.host, entry.licence)
    return download(entry.url, path, entry.sha256)
