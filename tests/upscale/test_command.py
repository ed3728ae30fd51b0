"""The command python -m sr_lightning.upscale."""

import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning import load
from sr_lightning.errors import InputError
from sr_lightning.images.photo import DeepPhoto, read_photo, write_photo
from sr_lightning.upscale import pipeline
from sr_lightning.upscale.command import main
from sr_lightning.upscale.options import MIN_TILE
from sr_lightning.upscale.plan import check_output, find_inputs, plan
from tests.helpers import ROOT
from tests.helpers import run as run_command

RNG = np.random.default_rng(0)
FOUND = ["bmp.bmp", "gray.PNG", "jpg.jpg", "pixel.png", "png.png", "still.gif", "tif.tif", "webp.webp"]  # in `folder`


@pytest.fixture
def folder(tmp_path):
    """Pictures of every format, and other files."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    colour = Image.fromarray(RNG.integers(0, 256, (19, 24, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "tif", "bmp"):
        colour.save(folder / f"{suffix}.{suffix}")
    colour.save(folder / "still.gif")
    colour.save(folder / "sub" / "deeper.png")
    colour.convert("L").save(folder / "gray.PNG")
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "pixel.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("")
    return folder


@pytest.fixture
def command(trained, tmp_path):
    """Run the command with -o tmp_path/out and return its exit code."""

    def run(*words, ckpt=trained):
        words = [*words] if "-o" in words else [*words, "-o", tmp_path / "out"]
        return main([str(word) for word in ("--device", "cpu", "-c", ckpt, *words)])

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder_is_enlarged_in_the_formats_of_its_pictures(folder, tmp_path, command, trained, caplog):
    caplog.set_level(logging.INFO)
    assert command(folder) == 0
    formats = {
        "bmp_x2.bmp": "BMP",
        "gray_x2.PNG": "PNG",
        "jpg_x2.jpg": "JPEG",
        "pixel_x2.png": "PNG",
        "png_x2.png": "PNG",
        "still_x2.png": "PNG",
        "tif_x2.tif": "TIFF",
        "webp_x2.webp": "WEBP",
    }
    assert names(tmp_path / "out") == sorted(formats)
    for name, file_format in formats.items():
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == file_format
            assert image.size == ((2, 2) if "pixel" in name else (48, 38))
            assert image.mode == ("L" if "gray" in name else "RGB")
    with Image.open(folder / "png.png") as image:
        expected = load(trained, device="cpu").upscale(image)
    for name in ("png_x2.png", "tif_x2.tif", "bmp_x2.bmp"):
        assert Image.open(tmp_path / "out" / name).tobytes() == expected.tobytes()
    assert "1 other files ignored" in caplog.text
    assert "8 of 8 written to" in caplog.text


def test_failures_are_listed_and_the_rest_is_done(folder, tmp_path, command, caplog):
    good = (folder / "png.png").read_bytes()
    (folder / "damaged.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.webp").touch()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (4, 4), (1, 2, 3, 100)).save(folder / "glass.png")
    assert command(folder, "--format", "jpg", "--tile", "16") == 1
    assert names(tmp_path / "out") == sorted(
        f"{stem}_x2.jpg" for stem in ("bmp", "gray", "jpg", "pixel", "png", "still", "tif", "webp")
    )
    report = caplog.records[-1].getMessage()
    assert report.startswith("error: 5 failed:")
    for name in (
        "damaged.png",
        "text.jpg",
        "empty.webp",
        "moving.gif: contains 2 images",
        "glass_x2.jpg: JPEG cannot store",
    ):
        assert name in report
    assert report.count("\n") == 5


def test_full_disk_leaves_no_partial_file(folder, tmp_path, command, monkeypatch, caplog):
    save = Image.Image.save

    def save_some(image, path, **options):
        save(image, path, **options)
        if options["format"] == "TIFF":
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_some)
    assert command(folder / "tif.tif", folder / "png.png") == 1
    assert names(tmp_path / "out") == ["png_x2.png"]
    assert "out/tif_x2.tif cannot be written: No space left on device" in caplog.records[-1].getMessage()


def test_existing_results_are_refused_skipped_or_replaced(folder, tmp_path, command, caplog):
    there = tmp_path / "out" / "png_x2.png"
    there.parent.mkdir()
    there.write_text("mine")
    inputs = (folder / "png.png", folder / "jpg.jpg")
    assert command(*inputs) == 1
    assert names(there.parent) == ["png_x2.png"]
    assert "results exist; add --exist skip or --exist overwrite:" in caplog.text
    caplog.set_level(logging.INFO)
    assert command(*inputs, "--exist", "skip") == 0
    assert "1 of 2 skipped" in caplog.text
    assert there.read_text() == "mine"
    assert names(there.parent) == ["jpg_x2.jpg", "png_x2.png"]
    assert command(*inputs, "--exist", "overwrite") == 0
    assert Image.open(there).size == (48, 38)


def jobs(*sources, out="out", suffix=None, exist="error"):
    sources, out = {Path(source): Path() for source in sources}, Path(out)
    check_output(sources, out, suffix)
    return [job.target.name for job in plan(sources, out, "_x3", suffix, exist)]


def test_names_state_the_scale_and_keep_the_suffix():
    sources = ("a/photo.JPG", "b/scan.tiff", "c.d.png", "e.gif", "f", "clip.mov", "old.avi")
    assert jobs(*sources) == [
        *("photo_x3.JPG", "scan_x3.tiff", "c.d_x3.png", "e_x3.png", "f_x3.png", "clip_x3.mov", "old_x3.mkv")
    ]
    assert jobs(*sources[:4], "clip.mp4", suffix="webp") == [
        *("photo_x3.webp", "scan_x3.webp", "c.d_x3.webp", "e_x3.webp", "clip_x3.mp4")
    ]


def test_inputs_of_one_name_get_results_of_different_names():
    assert jobs("a/p.png", "b/p.png", "q.png") == ["a_p.png_x3.png", "b_p.png_x3.png", "q_x3.png"]
    assert jobs("p.png", "p.jpg", "p.png.gif", "q.png", suffix="webp") == [
        *("_p.png_x3.webp", "p.jpg_x3.webp", "p.png.gif_x3.webp", "q_x3.webp")
    ]


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (("c/a/p.png", "d/a/p.png"), {}, "c/a/p.png -> out/a_p.png_x3.png, as from another input\n  d/a/p.png"),
        (("p.png", "p" * 250 + ".png"), {}, f"{'p' * 250}.png: its name is too long for one that ends in _x3"),
        (("p.png", "p_x3.png"), {"out": "."}, "p.png -> p_x3.png, which is an input"),
        (("p.png", "q.png"), {"out": "big.png"}, "2 inputs cannot become one file; give a folder"),
        (("p.png",), {"out": "big.png", "suffix": "jpg"}, "big.png and --format jpg name different formats"),
        (("p.png",), {"out": "big.mp4"}, "the suffix of the result of p.png must be one of .png"),
        (("p.png",), {"out": "big.gif"}, "the suffix of the result of p.png must be one of .png"),
        (("p.mp4",), {"out": "big.avi"}, "the suffix of the result of p.mp4 must be one of .m4v"),
        (("p.png",), {"out": __file__}, "this is a file; give a folder"),
    ],
)
def test_colliding_results_are_refused(sources, options, message):
    with pytest.raises(InputError, match=message):
        jobs(*sources, **options)


def test_refusal_comes_before_any_computation(folder, tmp_path, command, caplog):
    inputs = [folder / "png.png", folder / f"{'n' * 250}.png"]
    Image.new("RGB", (4, 4)).save(inputs[1])
    assert command(*inputs, "--format", "png") == 1
    assert "results would overwrite one another" in caplog.text
    assert not (tmp_path / "out").exists()


def test_single_input_may_be_written_to_a_named_file(folder, tmp_path, command):
    assert command(folder / "png.png", "-o", tmp_path / "new" / "big.jpeg") == 0
    assert names(tmp_path / "new") == ["big.jpeg"]
    assert Image.open(tmp_path / "new" / "big.jpeg").format == "JPEG"


def test_results_lie_beside_their_inputs_and_are_not_enlarged_again(folder, trained, caplog):
    caplog.set_level(logging.INFO)
    words = [str(folder), "-c", str(trained), "--device", "cpu", "--exist", "skip"]
    before = set(names(folder))
    assert main(words) == 0
    stems = [name.partition(".") for name in FOUND]
    assert set(names(folder)) - before == {f"{stem}_x2.{end.replace('gif', 'png')}" for stem, _, end in stems}
    assert "8 of 8 written to the folders of the inputs" in caplog.text
    assert main(words) == 0
    assert "8 of 16 inputs left out, as their names are those of results" in caplog.text
    assert "8 of 8 skipped: their results exist" in caplog.text
    for option, end in ((["--factor", "2.50"], "_x2.5"), (["--to", "x40"], "_x40"), (["--suffix=-big"], "-big")):
        assert main([*words, *option]) == 0
        earlier = names(folder)
        assert main([*words, *option]) == 0
        assert names(folder) == earlier
        assert f"png{end}.png" in earlier and not [name for name in earlier if "_x2_x" in name]
    caplog.clear()
    assert main([str(folder / "png_x2.png"), *words[1:]]) == 0  # named without its original
    assert (folder / "png_x2_x2.png").exists()


def test_subfolders_are_kept_below_the_results(folder, tmp_path, command, caplog):
    caplog.set_level(logging.INFO)
    (folder / ".git").mkdir()
    Image.new("L", (4, 4)).save(folder / ".git" / "hidden.png")
    out = folder / "big"
    for _ in range(2):  # the folder of results is not searched
        assert command(folder, "-r", "-o", out, "--exist", "skip", "--suffix", "") == 0
    assert names(out) == sorted([*(name for name in FOUND if "still" not in name), "still.png", "sub"])
    assert names(out / "sub") == ["deeper.png"]
    assert "9 of 9 skipped" in caplog.text
    for _ in range(2):
        assert command(f"{folder}/**/*.png", "-o", out, "--exist", "skip") == 0
    assert not [name for name in names(out) if "_x2_x2" in name]
    assert command(folder / "sub" / "..", "-r", "-o", tmp_path / "other", "--to", "x60") == 0
    assert (tmp_path / "other" / "sub" / "deeper_x60.png").exists()


def test_a_folder_of_subfolders_names_the_option_that_searches_them(folder, tmp_path):
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "in")
    with pytest.raises(InputError, match="no image and no video in this folder; -r searches subfolders"):
        find_inputs([str(tmp_path / "outer")])
    assert len(find_inputs([str(tmp_path / "outer")], recursive=True)) == 9


@pytest.mark.parametrize("name", ["photo.png", "gray16.png", "colour16.png", "clear.png", "cmyk.jpg"])
def test_factor_keeps_depth_transparency_and_metadata(name, tmp_path, command, caplog):
    caplog.set_level(logging.INFO)
    colour = RNG.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    path = tmp_path / name
    if name == "colour16.png":
        write_photo(path, DeepPhoto(colour[..., :3].astype(np.uint16) * 257, {"dpi": (300, 300)}))
    else:
        images = {
            "photo.png": Image.fromarray(colour[..., :3]),
            "gray16.png": Image.fromarray(colour[..., 0].astype(np.uint16) * 257),
            "clear.png": Image.fromarray(colour),
            "cmyk.jpg": Image.fromarray(colour[..., :3]).convert("CMYK"),
        }
        images[name].save(path, dpi=(300, 300))
    assert command(path, "--factor", "3") == 0
    assert f"_x3.{name[-3:]}, 120x90 (2 passes of x2, bicubic down from 160x120)" in caplog.text
    photo = read_photo(tmp_path / "out" / f"{path.stem}_x3.{name[-3:]}")
    assert photo.size == (120, 90)
    assert isinstance(photo, DeepPhoto) == (name == "colour16.png")
    if isinstance(photo, Image.Image):
        assert photo.mode == {"gray16.png": "I;16", "clear.png": "RGBA"}.get(name, "RGB")
    assert photo.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_images_larger_than_the_size_are_reported_and_the_rest_is_done(folder, tmp_path, command, caplog):
    assert command(folder / "png.png", folder / "pixel.png", "--to", "24x24") == 1
    assert names(tmp_path / "out") == ["pixel_24x24.png"]
    assert "png.png: 24x19 pixels, which --to 24x24 would not enlarge" in caplog.records[-1].getMessage()


def test_standard_output_has_the_picture_only(folder, trained):
    words = [sys.executable, "-m", "sr_lightning.upscale", "-", "-c", str(trained), "--device", "cpu"]
    done = subprocess.run(words, input=(folder / "webp.webp").read_bytes(), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("WEBP", (48, 38))
    assert b"stdin.webp -> stdout.webp, 48x38" in done.stderr
    assert b"\r" not in done.stderr and b"|" not in done.stderr


def test_closed_or_full_standard_output_is_no_traceback(folder, command, monkeypatch, caplog):
    read, write = os.pipe()
    os.close(read)
    outputs = [write, os.open("/dev/full", os.O_WRONLY)] if os.path.exists("/dev/full") else [write]
    for output, problem in zip(outputs, ("Broken pipe", "No space left on device"), strict=False):
        stream = os.fdopen(output, "w")
        monkeypatch.setattr(sys, "stdout", stream)
        assert command(folder / "png.png", "-o", "-") == 1
        assert f"-o -: standard output cannot be written: {problem}" in caplog.records[-1].getMessage()
        stream.close()  # as Python does at its end: writes what is left


class Standard:
    """Standard input or output."""

    def __init__(self, data=b"", *, terminal=False):
        self.buffer, self.terminal = io.BytesIO(data), terminal

    def isatty(self):
        return self.terminal


def test_standard_input_is_an_input(folder, tmp_path, command, monkeypatch, caplog):
    data = (folder / "jpg.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", Standard(data))
    assert command("-", folder / "png.png") == 0
    assert names(tmp_path / "out") == ["png_x2.png", "stdin_x2.jpg"]
    for given, message in (
        (Standard(), "-: standard input is empty"),
        (Standard(terminal=True), "-: nothing is piped into standard input"),
        (None, "-: nothing is piped into standard input"),
        (Standard(b"text"), "stdin: not an image that Pillow can read"),
        (Standard(data[: len(data) * 9 // 10]), "stdin.jpg: cannot be decoded (image file is truncated"),
    ):
        monkeypatch.setattr(sys, "stdin", given)
        assert command("-", "--exist", "overwrite") == 1
        assert message in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["png.png", "jpg.jpg", "-o", "-"], "-o -: 2 inputs cannot become one file"),
        (["clip.mp4", "-o", "-"], "clip.mp4 is a video, and only images are written to standard output"),
        (["png.png", "-o", "-"], "-o -: standard output is a terminal, or closed; redirect it"),
    ],
)
def test_invalid_uses_of_standard_output_are_refused(words, message, folder, command, monkeypatch, caplog):
    (folder / "clip.mp4").touch()
    monkeypatch.setattr(sys, "stdout", Standard(terminal=True))
    assert command(*(folder / word if "." in word else word for word in words)) == 1
    assert message in caplog.records[-1].getMessage()


def test_patterns_and_repetitions_name_each_file_once(folder):
    found = find_inputs([f"{folder}/**/*.png", str(folder / "png.png"), f"{folder}/sub/../jpg.jpg", f"{folder}/*.j*"])
    assert [path.name for path in found] == ["pixel.png", "png.png", "deeper.png", "jpg.jpg"]


def test_missing_inputs_are_all_named(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError) as caught:
        find_inputs(["nowhere.png", f"{folder}/*.heic", str(tmp_path / "bare"), str(folder / "png.png"), ""])
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[1].split(";")[0] for line in lines] == [
        "no such file or folder",
        "matches no image and no video",
        "no image and no video in this folder",
        "an empty name",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quality", "0"], "--quality 0: choose a number from 1 to 100"),
        (["--png-compression", "10"], "--png-compression 10: choose a number from 0 to 9"),
        (["--factor", "1"], "--factor 1: choose a number above 1"),
        (["--to", "10"], "--to 10: give a width"),
        (["--suffix", "a/b"], "--suffix a/b: give a part of a file's name"),
        (["--device", "tpu"], "device='tpu': choose auto, cpu, cuda or cuda:N"),
        (["--tile", "7"], f"tile=7: choose auto, 0 .the whole image. or at least {MIN_TILE}"),
    ],
)
def test_wrong_options_end_the_command(words, message, folder, tmp_path, command, caplog):
    assert command(folder / "png.png", *words) == 1
    assert caplog.records[-1].getMessage().startswith("error: ")
    assert message.replace("\\", "") in caplog.text.replace("(", ".").replace(")", ".")
    assert not (tmp_path / "out").exists()


def test_home_is_expanded_and_jpeg_spellings_are_one_format(folder, tmp_path, command, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command(folder / "png.png", "-o", "~/big") == 0
    assert names(tmp_path / "big") == ["png_x2.png"]
    assert command(folder / "png.png", "-o", tmp_path / "a.jpeg", "--format", "jpg") == 0


def test_inaccessible_folders_are_named_before_the_work(folder, tmp_path, command, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    assert command(folder / "png.png", "-o", tmp_path / "file" / "sub") == 1
    assert f"{tmp_path / 'file'} is a file; give a folder" in caplog.text
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    assert command(folder / "png.png") == 1
    assert f"no permission to write into {tmp_path}; give another folder" in caplog.text
    assert not (tmp_path / "out").exists()

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    assert command(folder) == 1
    assert caplog.records[-1].getMessage() == f"error: {folder}: Permission denied"


NO_NETWORK = "holds ESPCN, and its weights do not show activation and global_skip"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda c: c.update(hyper_parameters=None),
            NO_NETWORK,
        ),
        (
            lambda c: c["hyper_parameters"].update(model=None),
            NO_NETWORK,
        ),
        (
            lambda c: c["hyper_parameters"]["model"]["network"].pop("_target_"),
            NO_NETWORK,
        ),
        (
            lambda c: c["hyper_parameters"]["model"].update(
                network={"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
            ),
            "names a network that is not one of this project's: 'torch.nn.Linear'",
        ),
        (
            lambda c: next(iter(c["state_dict"].values())).fill_(torch.nan),
            "holds NaN or infinite values in 1 of 4 weight tensors, such as convs.0.weight: its training diverged",
        ),
    ],
)
def test_damaged_checkpoint_is_named(spoil, message, trained, folder, tmp_path, command, caplog):
    checkpoint = torch.load(trained, weights_only=True)
    spoil(checkpoint)
    torch.save(checkpoint, tmp_path / "spoilt.ckpt")
    assert command(folder / "png.png", ckpt=tmp_path / "spoilt.ckpt") == 1
    assert message in caplog.records[-1].getMessage()
    assert not (tmp_path / "out").exists()


def test_wrong_checkpoint_ends_the_command(folder, tmp_path, command, caplog):
    assert command(folder / "png.png", ckpt=folder / "png.png") == 1
    assert "png.png is no file of weights: it begins with" in caplog.text
    assert command(folder / "png.png", ckpt=tmp_path) == 1
    assert f"{tmp_path} is a folder without a checkpoint" in caplog.text


def test_empty_name_is_not_the_included_network(command, folder, caplog):
    assert command(folder / "png.png", ckpt="") == 1
    assert "'' is no file of weights" in caplog.text


def test_empty_name_is_not_the_working_directory(folder, capsys):
    with pytest.raises(SystemExit):
        main([str(folder / "png.png"), "-o", ""])
    assert "argument -o/--out: an empty name" in capsys.readouterr().err


def test_self_ensemble_commutes_with_rotation(folder, tmp_path, command):
    with Image.open(folder / "png.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    assert command(folder / "png.png", tmp_path / "turned.png", "--self-ensemble") == 0
    straight, turned = (np.asarray(Image.open(tmp_path / "out" / f"{n}_x2.png")).astype(int) for n in ("png", "turned"))
    assert np.abs(np.rot90(straight) - turned).max() <= 1


def test_more_pixels_than_may_wait_are_all_written(tmp_path, command, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_PENDING_PIXELS", 300)
    for i in range(12):
        Image.new("L", (10 + i, 10), i).save(tmp_path / f"{i}.png")
    assert command(*(tmp_path / f"{i}.png" for i in range(12))) == 0
    assert {Image.open(path).size for path in (tmp_path / "out").iterdir()} == {(20 + 2 * i, 20) for i in range(12)}


def test_png_compression_changes_the_size_and_no_pixel(tmp_path, command):
    rows = np.arange(60, dtype=np.uint8)[:, None].repeat(80, axis=1)
    Image.fromarray(rows).save(tmp_path / "smooth.png")
    results = {}
    for words in ((), ("--png-compression", "0"), ("--png-compression", "2"), ("--png-compression", "9")):
        assert command(tmp_path / "smooth.png", "--exist", "overwrite", *words) == 0
        results[words[-1:]] = (tmp_path / "out" / "smooth_x2.png").read_bytes()
    assert len(results["0",]) > 160 * 120 > len(results["2",]) > len(results["9",])
    assert results[()] == results["2",]
    assert len({Image.open(io.BytesIO(result)).tobytes() for result in results.values()}) == 1


@pytest.mark.parametrize(
    ("decoding", "encoding", "total", "png_compression", "message"),
    [
        (1, 7, 10, 6, "encoding took 70 % of the processor time; --png-compression 2 is faster"),
        (1, 7, 10, 2, "encoding took 70 % of the processor time"),
        (8, 1, 10, 6, "decoding took 80 % of the processor time"),
        (1, 4, 10, 6, None),  # the network took half
        (0, 4, 4, 6, None),  # a short time
    ],
)
def test_slowest_part_is_reported_unless_it_is_the_network(decoding, encoding, total, png_compression, message, caplog):
    caplog.set_level(logging.INFO)
    pipeline.log_slowest({"decoding": decoding, "encoding": encoding}, total, png_compression)
    assert [record.getMessage() for record in caplog.records] == ([message] if message else [])


def test_processor_time_of_decoding_and_encoding_is_part_of_the_total(folder, command, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    reports = []

    def record(*report):
        reports.append(report)
        pipeline.log.info("slowest part")

    monkeypatch.setattr(pipeline, "log_slowest", record)
    assert command(folder, "--png-compression", "6") == 0
    ((seconds, total, png_compression),) = reports
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) < total
    assert png_compression == 6
    assert [record.getMessage().split(" written")[0] for record in caplog.records[-2:]] == ["slowest part", "8 of 8"]


def test_interrupted_command_leaves_complete_files(folder, tmp_path, command, monkeypatch, caplog):
    from sr_lightning.upscale.upscaler import Upscaler
    from sr_lightning.utils.signals import Interrupted

    done = []

    def enlarge(self, image, progress, size):
        if len(done) == 2:
            raise Interrupted(signal.SIGINT)
        done.append(image)
        return image

    monkeypatch.setattr(Upscaler, "upscale", enlarge)
    assert command(folder) == 130
    assert "interrupted; the results written so far are complete. To continue, add --exist skip" in caplog.text
    for path in (tmp_path / "out").iterdir():
        Image.open(path).load()
    assert len(names(tmp_path / "out")) <= 2


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_ends_the_command_with_its_exit_code(folder, tmp_path, command, monkeypatch, caplog, signum, code):
    from sr_lightning.upscale.upscaler import Upscaler

    monkeypatch.setattr(Upscaler, "upscale", lambda *_: signal.raise_signal(signum))
    assert command(folder, "--exist", "skip") == code
    assert "To continue, run the same command again" in caplog.text
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")


def test_control_characters_and_bytes_in_names_are_escaped(tmp_path, trained):
    name = b"a\x1b[31m\xff.png"
    Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"no picture")
    words = ["-m", "sr_lightning.upscale", tmp_path, "-c", trained, "-o", tmp_path / "out"]
    done = run_command(*words, check=False)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr and "a\\x1b[31m\\udcff.png: not an image" in done.stderr


def test_out_of_memory_is_reported_and_the_picture_finished(folder, tmp_path, command, monkeypatch, caplog):
    from sr_lightning.networks import ESPCN

    Image.fromarray(RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    assert command(tmp_path / "large.png") == 0
    expected = Image.open(tmp_path / "out" / "large_x2.png").tobytes()
    forward = ESPCN.forward

    def small_only(self, lr):
        if lr.shape[-1] * lr.shape[-2] > 2000:
            torch.empty(2**60, dtype=torch.uint8)
        return forward(self, lr)

    monkeypatch.setattr(ESPCN, "forward", small_only)
    assert command(tmp_path / "large.png", "--exist", "overwrite") == 0
    assert "out of memory: continuing with tiles of 35" in caplog.text
    result = np.asarray(Image.open(tmp_path / "out" / "large_x2.png")).astype(int)
    assert np.abs(result - np.frombuffer(expected, np.uint8).reshape(result.shape)).max() <= 1


def test_help_has_an_example_and_imports_no_torch():
    code = """
import runpy, sys
sys.argv = ["upscale", "--help"]
try:
    runpy.run_module("sr_lightning.upscale", run_name="__main__")
except SystemExit:
    assert not {"torch", "hydra", "PIL", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sr-upscale photo.jpg -c outputs/RUN -o big" in done.stdout


def test_missing_gpu_is_refused_before_torch_is_imported(folder):
    code = f"""
import sys
from sr_lightning.upscale import options
from sr_lightning.upscale.command import main
options.lacks_gpu = lambda: True
assert main([{str(folder / "png.png")!r}, "-c", "missing.ckpt", "-o", "big", "--device", "cuda:1"]) == 1
assert not {{"torch", "PIL"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: device='cuda:1': this machine has no GPU; choose auto or cpu\n"


def test_command_line_returns_its_exit_code_without_a_traceback(folder, tmp_path, trained):
    (folder / "bad.png").write_text("no picture")
    words = ["-m", "sr_lightning.upscale", folder / "png.png", folder / "bad.png", "-c", trained]
    done = run_command(*words, "-o", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert "png_x2.png, 48x38" in done.stderr
    assert "error: 1 failed:" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == ["png_x2.png"]
