"""Pages that open without a server: template, shared style and script, and data in one file that requests nothing."""

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

SHARED = ("page.css", "page.js")  # beside this file; templates contain their names in double braces


def fill_page(template: Path, title: str, data: Mapping[str, Any]) -> str:
    """Fill in title and data, and a policy that allows only the page's own script and no network access.

    Args:
        template: A page with {{title}}, {{data}}, {{script-hash}}, {{bytes}} (of the page), {{page.css}}, {{page.js}}.
        title: Plain text.
        data: What JSON can represent; see `plain_value`.
    """
    text = template.read_text(encoding="utf-8")
    for name in SHARED:
        text = text.replace(f"{{{{{name}}}}}", Path(__file__).with_name(name).read_text(encoding="utf-8").rstrip("\n"))
    script = re.search(r"<script>(.*?)</script>", text, flags=re.DOTALL)[1]
    values = {
        "title": html.escape(title),
        "script-hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # escaped, so that no name can end the script element that holds the data
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    values["bytes"] = str(len(text.encode()) + len(values["data"].encode(errors="backslashreplace")))
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: values[match[1]], text)


def plain_value(value: Any) -> str | int | float | None:
    """Convert to a value that JSON supports: the page shows numbers beyond 1e300 as infinite, and None as missing."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (float, np.number)):
        return None if math.isnan(value) else min(max(float(value), -1e308), 1e308)
    return str(value)


def relative_url(file: Path, folder: Path) -> str:
    """Return the address of a file as seen from a page in a folder, so that both can be moved together."""
    return quote(Path(os.path.relpath(file, folder)).as_posix())
