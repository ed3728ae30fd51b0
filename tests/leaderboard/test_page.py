"""leaderboard.html: its data without a browser, and the page in a real one."""

import csv
import json
import re
import shutil
import sys

import pytest
from omegaconf import OmegaConf

from sr_lightning.leaderboard.page import write_page
from sr_lightning.leaderboard.runs import find_runs, group
from sr_lightning.leaderboard.table import write_csv

in_browser = pytest.mark.slow
ODD = "<img src=x onerror=alert(1)> \"q\" 'é' & 100 %/#?"


def make_run(directory, name, seed=0, scale=2, seconds=True, status="finished", best=33.0):
    """Write the files of a run that the page reads."""
    network = {"_target_": "sr_lightning.networks.ESPCN", "scale": scale}
    config = {
        "name": name,
        "data_root": "data",
        "seed": seed,
        "scale": scale,
        "max_steps": 40,
        "choices": {"data": "t91"},
    }
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / "best.ckpt").touch()
    OmegaConf.save(config | {"model": {"network": network}}, directory / "config.yaml")
    lines = ["step,seconds,val/psnr" if seconds else "step,val/psnr"]
    for k in (1, 2, 3, 4):
        lines.append(f"{10 * k},{6.0 * k},{best - 4 + k}" if seconds else f"{10 * k},{best - 4 + k}")
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    if status:
        result = {"status": status, "psnr": best, "steps": 40, "seconds": 24.0, "bicubic": 29.5}
        result |= {"error": "boom"} if status == "failed" else {}
        (directory / "result.json").write_text(json.dumps(result))


def row_of(benchmark, scale, model, psnr, rank, **more):
    row = {"benchmark": benchmark, "scale": scale, "model": model, "data": "t91"}
    row |= {"psnr_y": psnr, "psnr_y_deviation": None, "ssim_y": psnr / 40, "ssim_y_deviation": None, "gain": psnr - 30}
    row |= {"published": None, "distance": None, "compared_with": "", "differs": "", "parameters": 1000}
    row |= {"multiply_adds": 2e9, "milliseconds": 12.5, "seconds": 24.0, "seeds": 1, "protocol": "p", "rank": rank}
    return row | more


@pytest.fixture
def board(tmp_path):
    """A folder with four runs, one of them with a report, and their leaderboard; `a` is best on Set5, `b` on BSD100."""
    sweep = tmp_path / "moved" / "sweep"
    make_run(sweep / "a0", "a", seed=0)
    make_run(sweep / "a1", "a", seed=1, best=32.5)
    make_run(sweep / "b", "b", best=34.0, seconds=False)
    make_run(sweep / "c", ODD, scale=3, status="failed", best=31.0)
    (sweep / "a1" / "report.html").write_text("<title>report of a1</title>")
    bicubic = {"parameters": 0, "seconds": None, "seeds": None, "data": ""}
    rows = [
        row_of("Set5", 2, "a", 34.12345678901234, 1, seeds=2, psnr_y_deviation=0.0123, parameters=20_000),
        row_of("Set5", 2, "b", 33.0, 2, published=33.5, distance=-0.5, compared_with="B", differs="depth 1"),
        row_of("Set5", 2, "bicubic", 30.0, None, **bicubic),
        row_of("BSD100", 2, "b", 32.9, 1),
        row_of("BSD100", 2, "a", 31.0, 2, milliseconds=None, parameters=20_000),
        row_of("BSD100", 2, "bicubic", 29.0, None, **bicubic),
    ]
    folder = sweep / "leaderboard"
    folder.mkdir()
    write_csv(folder / "leaderboard.csv", rows)
    runs = find_runs([sweep])
    reasons = {run.directory: (run.status, run.reason) for run in runs if not run.is_scorable}
    left_out = [{"run": str(path), "status": why[0], "reason": why[1]} for path, why in reasons.items()]
    content = {"rows": rows, "not_in_the_table": left_out, "notes": ["a note"], "command": "python evaluate.py runs=x"}
    write_page(folder, content, group(runs)[0], reasons)
    return folder


def data_of(folder):
    text = (folder / "leaderboard.html").read_text()
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_values_are_those_of_the_csv(board):
    with (board / "leaderboard.csv").open() as file:
        expected = list(csv.DictReader(file))
    found = [{k: "" if v is None else str(v) for k, v in row.items()} for row in data_of(board)["rows"]]
    assert found == expected


def test_runs_have_their_curves_and_a_report_or_the_command_that_makes_it(board, monkeypatch):
    runs = {(run["model"], run["seed"]): run for run in data_of(board)["runs"]}
    assert runs["a", 0]["curve"] == [[10, 6.0, 30.0], [20, 12.0, 31.0], [30, 18.0, 32.0], [40, 24.0, 33.0]]
    assert [point[1] for point in runs["b", 0]["curve"]] == [None] * 4
    assert (runs["b", 0]["bicubic"], runs["b", 0]["seconds"]) == (29.5, 24.0)
    assert runs["a", 1]["report"] == "../a1/report.html"
    assert runs["a", 0]["report"] is None
    directory = runs["a", 0]["directory"]
    assert runs["a", 0]["command"].startswith(f"python evaluate.py ckpt={directory} ")
    assert runs["a", 0]["command"].endswith(f"hydra.run.dir={directory}/report")
    failed = runs[ODD, 0]
    assert (failed["status"], failed["reason"], failed["command"]) == ("failed", "boom", None)


def test_command_of_a_report_repeats_the_settings_of_the_table_and_quotes_paths(board, monkeypatch):
    words = ["evaluate.py", "runs=x", "benchmarks=[Set5]", "protocol=rgb", "report_images=3", "scale=x2"]
    monkeypatch.setattr(sys, "argv", words)
    runs = find_runs([board.parent / "a0"])
    odd = board.parent / "odd, run"
    shutil.copytree(runs[0].directory, odd)
    write_page(board, {"rows": data_of(board)["rows"]} | NOTHING, group(find_runs([odd]))[0], {})
    (run,) = data_of(board)["runs"]
    path = f"'\"'\"'{odd}'\"'\"'"
    settings = "'benchmarks=[Set5]' protocol=rgb"
    assert (
        run["command"] == f"python evaluate.py 'ckpt={path}' {settings} 'hydra.run.dir={path[:-5]}/report{path[-5:]}'"
    )


NOTHING = {"not_in_the_table": [], "notes": [], "command": ""}


def test_report_made_by_the_command_is_linked(board):
    own = board.parent / "a1" / "report"
    own.mkdir()
    (own / "report.html").touch()
    write_page(board, {"rows": data_of(board)["rows"]} | NOTHING, group(find_runs([board.parent]))[0], {})
    assert [run["report"] for run in data_of(board)["runs"] if run["report"]] == ["../a1/report/report.html"]


def test_damaged_lines_of_metrics_are_left_out_of_the_curve(tmp_path):
    make_run(tmp_path / "a", "a")
    (tmp_path / "a" / "metrics.csv").write_text("step,val/psnr\nten,30\n20,inf\n30,x\n40,31.5\n")
    (run,) = find_runs([tmp_path])
    assert (run.cell.curve, run.cell.times) == ([(40, 31.5)], [None])


def models(page):
    return page.locator("#table tbody tr:visible > th").all_inner_texts()


@in_browser
def test_table_is_sorted_by_mouse_and_keyboard(board, visit):
    page = visit(board / "leaderboard.html")
    assert models(page) == ["a", "b", "bicubic", "b", "a", "bicubic"]
    psnr = page.locator("#table").get_by_role("button", name="PSNR (Y)")
    psnr.click()
    assert models(page) == ["a", "b", "b", "a", "bicubic", "bicubic"]
    assert page.locator("#table th[aria-sort=descending]").inner_text() == "PSNR (Y)"
    psnr.press("Enter")
    assert models(page) == ["bicubic", "bicubic", "a", "b", "b", "a"]
    page.locator("#table").get_by_role("button", name="rank").press("Space")
    assert page.locator("#table th[aria-sort=ascending]").inner_text() == "rank"
    assert models(page)[-2:] == ["bicubic", "bicubic"]  # without a rank
    page.reload()
    assert page.locator("#table th[aria-sort=ascending]").inner_text() == "rank"


@in_browser
def test_filter_set_and_columns_are_stored_in_the_address(board, visit):
    page = visit(board / "leaderboard.html")
    page.locator("#filter").fill("B set5")
    page.locator("#count").get_by_text("2 of 6 rows").wait_for()
    assert models(page) == ["b", "bicubic"]
    page.locator("#filter").fill("b")
    page.locator("#set").select_option("BSD100 ×2")
    assert models(page) == ["b", "a", "bicubic"]
    page.locator("#filter").fill("directory-of-none")
    page.locator("#count").get_by_text("0 of 6 rows").wait_for()
    assert page.locator("#curves-panels").inner_text() == "No curves."
    page.locator("#filter").fill("")
    page.locator("#count").get_by_text("3 of 6 rows").wait_for()
    heads = page.locator("#table thead th")
    assert "ms" in heads.all_inner_texts()
    page.locator("#choose summary").press("Enter")
    page.locator("#columns").get_by_text("ms", exact=True).click()
    page.locator("#columns").get_by_label("protocol").press("Space")
    shown = heads.all_inner_texts()
    assert ("ms" in shown, "protocol" in shown) == (False, True)
    again = visit(board / "leaderboard.html", page.url.partition("leaderboard.html")[2])
    assert again.locator("#table thead th").all_inner_texts() == shown
    assert (models(again), again.locator("#set").input_value()) == (["b", "a", "bicubic"], "BSD100 ×2")
    wrong = visit(board / "leaderboard.html", "#set=none&sort=none&columns=none&cost=none&over=none")
    assert len(models(wrong)) == 6


@in_browser
def test_curves_over_minutes_leave_out_runs_without_seconds_and_say_so(board, visit):
    page = visit(board / "leaderboard.html")
    curves = page.locator("#curves-panels .item")
    assert curves.count() == 4
    assert page.locator("#curves-panels figcaption").all_inner_texts() == ["×2", "×3"]
    assert page.locator("#curves-panels .bicubic").count() == 2
    assert page.locator("#untimed").inner_text().startswith("1 run of earlier versions did not record seconds")
    page.locator("#over").select_option("minutes")
    assert sorted(curves.evaluate_all("all => all.map(one => one.ariaLabel[0])")) == ["<", "a", "a"]
    assert "over=minutes" in page.url


@in_browser
def test_every_point_is_reached_by_arrow_keys_and_opens_its_runs(board, visit):
    page = visit(board / "leaderboard.html")
    panel = page.locator("#costs-panels figure").first
    assert panel.locator(".item text").all_text_contents() == ["b", "a"]
    panel.locator(".item[tabindex='0']").focus()
    assert panel.locator(".told").inner_text() == "a, Set5 ×2: 34.12 ± 0.01 dB (+4.12), 20,000 parameters"
    assert panel.locator(".item.on text").all_text_contents() == ["a"]
    page.keyboard.press("ArrowDown")
    assert panel.locator(".told").inner_text().startswith("b, Set5 ×2")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.locator("h2").inner_text() == "b ×2"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#cost").select_option("milliseconds")
    assert page.locator("#costs-panels .item").count() == 3
    box = page.locator("#costs-panels svg.plot").first.bounding_box()
    circle = page.locator("#costs-panels .item circle").first.bounding_box()
    page.mouse.move(circle["x"] + 14, circle["y"] - 8)  # near a point
    assert page.locator("#costs-panels .marking .on").count() == 1
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2)
    assert page.locator("#costs-panels .marking").count() == 0


@in_browser
def test_report_of_a_run_is_a_link_that_survives_a_move_of_the_folder(board, visit):
    home = board.parents[2] / "elsewhere"
    shutil.move(board.parents[1], home)
    page = visit(home / "sweep" / "leaderboard" / "leaderboard.html")
    link = page.locator("#table tbody tr").first.get_by_role("link")
    assert link.inner_text() == "seed 1"
    with page.expect_navigation():
        link.click()
    assert page.title() == "report of a1"
    page.requests.clear()


@in_browser
def test_run_without_a_report_shows_the_command_that_makes_it(board, visit):
    page = visit(board / "leaderboard.html", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#table tbody tr").first.get_by_role("button", name="make").click()
    dialog = page.locator("dialog")
    assert "34.12345678901234 ± 0.0123" in dialog.inner_text()  # in full
    assert dialog.get_by_role("link", name="Report with pictures").get_attribute("href") == "../a1/report.html"
    command = dialog.locator("pre").inner_text()
    assert command == data_of(board)["runs"][0]["command"]
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == command


@in_browser
def test_legend_marks_a_model_in_all_drawings(board, visit):
    page = visit(board / "leaderboard.html")
    page.locator("#legend").get_by_role("button", name="a", exact=True).click()
    marked = page.locator(".item.on").evaluate_all("all => all.map(one => one.ariaLabel[0])")
    assert marked == ["a", "a", "a", "a"]  # two curves, two points
    page.locator("#legend").get_by_role("button", name="a", exact=True).click()
    assert page.locator(".marking").count() == 0


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_large_targets_and_needs_no_horizontal_scrolling(board, visit, scheme):
    page = visit(board / "leaderboard.html", width=390, height=844, has_touch=True, color_scheme=scheme)
    page.locator("#choose summary").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    small = """[...document.querySelectorAll("button, select, summary, a:not(.skip), input[type=search], main label")]
        .filter(node => node.offsetParent && Math.min(node.offsetWidth, node.offsetHeight) < 44)
        .map(node => node.outerHTML)"""
    beyond = """[...document.querySelectorAll("main *, dialog *")].filter(
        node => node.getBoundingClientRect().right > 391 && !node.closest(".scroll")).map(node => node.outerHTML)"""
    assert page.evaluate(small) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(beyond) == []
    page.locator("#table").get_by_role("button", name="a", exact=True).first.click()
    assert page.evaluate(small) == []
    assert page.evaluate(beyond) == []


@in_browser
def test_names_are_shown_literally(board, visit):
    page = visit(board / "leaderboard.html")
    page.locator("#legend").get_by_role("button", name=ODD).click()
    assert page.locator("#not-in-the-table tbody td").all_inner_texts() == ["failed", "boom"]
