import ast
import json
import re
import shutil

import pytest

from tests.helpers import ROOT

CELLS = json.loads((ROOT / "docs" / "python.ipynb").read_text())["cells"]


def result_of(code, names):
    """Run a cell as a notebook does, and return the value of its last expression."""
    *body, last = ast.parse(code).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None


@pytest.mark.slow
def test_notebook_runs_and_shows_pictures_and_tables(pictures, tmp_path, monkeypatch):
    hr = tmp_path / "root" / "benchmark" / "Set5" / "HR"
    shutil.copytree(pictures, hr)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SR_DATA_ROOT", str(tmp_path / "root"))
    names, results = {}, []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            code = re.sub(r"max_steps=\d+, val_every=\d+", "max_steps=2, val_every=2", "".join(cell["source"]))
            results.append(result_of(code, names))
    assert "Upscaler(luma_x2" in repr(results[0]) and results[1].size == results[2].size == (320, 320)
    assert results[4]._repr_html_().count("<img") == len(names["run"].scores.pictures) > 0
    assert results[5]._repr_html_().count("<img") == 2 and "my ESPCN" in repr(results[5])
    assert len(results[6]) == 3


def test_notebook_is_committed_without_outputs():
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
