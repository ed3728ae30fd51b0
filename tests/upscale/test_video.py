"""Videos keep sound, timestamps and colours."""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from sr_lightning.errors import InputError
from sr_lightning.upscale.command import main
from sr_lightning.upscale.video import _Recoder, size_and_frames, upscale_video

av = pytest.importorskip("av", reason="videos need PyAV")

TIMES = [0, 40, 80, 130, 200, 210, 300, 340, 380, 470, 500, 540]  # milliseconds, of a variable frame rate


def clip(path, *, size=(64, 48), codec="libx264", pixels="yuv420p", sound="aac", rotation=0, **context):
    """Write twelve frames of moving gradients and a tone of the same length, titled "A clip"."""
    with av.open(str(path), "w") as made:
        video = made.add_stream(codec, rate=25, options={"crf": "5"})
        video.width, video.height, video.pix_fmt = *size, pixels
        video.codec_context.time_base = Fraction(1, 1000)
        for name, value in context.items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(rotation)
        audio = made.add_stream(sound, rate=48000, layout="mono") if sound else None
        made.metadata["title"] = "A clip"
        rows, columns = np.mgrid[: size[1], : size[0]]
        for i, time in enumerate(TIMES):
            rgb = np.stack([columns * 4 + i, rows * 6, rows + columns + 10 * i], axis=-1)
            frame = av.VideoFrame.from_ndarray(rgb.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            made.mux(video.encode(frame))
        made.mux(video.encode(None))
        if audio:
            tone = (8000 * np.sin(np.arange(48 * 580) * 0.05)).astype(np.int16)
            for start in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
                frame.pts, frame.sample_rate, frame.time_base = start, 48000, Fraction(1, 48000)
                made.mux(audio.encode(frame))
            made.mux(audio.encode(None))
    return path


def probe(path):
    """Read metadata, packets and frames of a video."""
    with av.open(str(path)) as given:
        video = given.streams.video[0]
        about = {
            "title": given.metadata.get("title"),
            "codecs": [stream.codec_context.codec.canonical_name for stream in given.streams],
            "size": (video.width, video.height),
        }
        packets = [packet for packet in given.demux() if packet.size]
        about["sound"] = [(bytes(p), p.pts * p.time_base) for p in packets if p.stream.type == "audio"]
        about["times"] = sorted(p.pts * p.time_base for p in packets if p.stream.type == "video")
        about["seconds"] = given.duration / 1e6
    with av.open(str(path)) as given:
        about["frames"] = list(given.decode(video=0))
    return about


def rgb_of(frame):
    return frame.to_ndarray(format="rgb24").astype(int)


def twice(frame, size=None):
    return frame.repeat(2, axis=0).repeat(2, axis=1)


def doubled(width, height):
    return 2 * width, 2 * height


@pytest.mark.parametrize(
    ("name", "result", "options", "codec"),
    [
        ("a.mp4", "b.mp4", {}, "h264"),
        ("a.mov", "b.mov", {"sound": "pcm_s16le"}, "h264"),
        ("a.mkv", "b.mkv", {"sound": "libmp3lame"}, "h264"),
        ("a.webm", "b.webm", {"codec": "libvpx-vp9", "sound": "libopus"}, "vp9"),
        ("a.mp4", "b.mkv", {"sound": None}, "h264"),
        ("a.mp4", "b.mp4", {"pixels": "yuv420p10le"}, "h264"),
    ],
)
def test_frames_timestamps_and_sound_are_kept(name, result, options, codec, tmp_path):
    before = probe(clip(tmp_path / name, **options))
    shares = []
    _, size = upscale_video(twice, doubled, tmp_path / name, tmp_path / result, shares.append)
    after = probe(tmp_path / result)
    assert size == after["size"] == (128, 96)
    assert after["codecs"][0] == codec
    assert after["codecs"][1:] == before["codecs"][1:]
    assert before["times"] == [Fraction(time, 1000) for time in TIMES]
    assert after["times"] == before["times"]
    assert after["seconds"] == pytest.approx(before["seconds"], abs=0.03)  # less than a frame
    assert len(after["sound"]) == len(before["sound"]) > (-1 if options.get("sound", "") is None else 20)
    assert after["sound"] == before["sound"]
    assert after["title"] == "A clip"
    assert sum(shares) == pytest.approx(1, abs=0.1)
    assert len(after["frames"]) == len(TIMES)
    for old, new in zip(before["frames"], after["frames"], strict=True):
        assert new.time == old.time
        assert np.abs(rgb_of(new) - twice(rgb_of(old)))[8:-8, 8:-8].mean() < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, result])


def test_a_frame_is_enlarged_while_the_one_before_is_encoded(tmp_path, monkeypatch):
    clip(tmp_path / "a.mp4", pixels="yuv420p10le")
    upscale_video(twice, doubled, tmp_path / "a.mp4", tmp_path / "alone.mkv")
    done, recoded = [], _Recoder.recoded

    class Pool(ThreadPoolExecutor):
        def submit(self, *work):
            done.append("begun")
            return super().submit(*work)

    monkeypatch.setattr(_Recoder, "recoded", lambda *frame: done.append("encoded") or recoded(*frame))
    with Pool(1) as pool:
        upscale_video(twice, doubled, tmp_path / "a.mp4", tmp_path / "beside.mkv", pool=pool)
    assert done == ["begun", *["begun", "encoded"] * (len(TIMES) - 1), "encoded"]
    alone, beside = (probe(tmp_path / name) for name in ("alone.mkv", "beside.mkv"))
    for old, new in zip(alone.pop("frames"), beside.pop("frames"), strict=True):
        assert (new.to_ndarray() == old.to_ndarray()).all()
    assert beside == alone


@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
@pytest.mark.parametrize("matrix", [1, 2, 6])  # BT.709, unspecified, BT.601
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_kept_for_every_matrix_and_range(size, matrix, full, tmp_path):
    ycc = (180, 90, 200)  # one colour, written without conversion
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as made:
        video = made.add_stream("libx264", rate=25, options={"crf": "5", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv444p"
        video.codec_context.colorspace, video.codec_context.color_range = matrix, 2 if full else 1
        planes = np.stack([np.full(size[::-1], value, np.uint8) for value in ycc])
        made.mux(video.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        made.mux(video.encode(None))
    seen = []
    upscale_video(lambda rgb, size: seen.append(rgb) or twice(rgb), doubled, source, tmp_path / "b.mkv")
    # ITU-R BT.601 and BT.709, from luma's weights of red and blue
    red, blue = (0.2126, 0.0722) if matrix == 1 or (matrix == 2 and size[1] >= 720) else (0.299, 0.114)
    y = ycc[0] / 255 if full else (ycc[0] - 16) / 219
    cb, cr = ((value - 128) / (255 if full else 224) for value in ycc[1:])
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    expected = np.array([r, (y - red * r - blue * b) / (1 - red - blue), b]).clip(0, 1) * 255
    assert np.abs(seen[0][4, 4] - expected).max() < 1.5
    frame = probe(tmp_path / "b.mkv")["frames"][0]
    assert frame.colorspace == (matrix if matrix != 2 else 1 if size[1] >= 720 else 6)
    assert frame.color_range == (2 if full else 1)
    if max(expected) < 255:
        assert np.abs(np.array([p[size[1] // 2, size[0] // 2] for p in planes_of(frame)]) - ycc).max() <= 2


def planes_of(frame):
    return frame.reformat(format="yuv444p").to_ndarray()


def test_more_than_8_bits_reach_the_network_and_the_file(tmp_path):
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as made:
        video = made.add_stream("libx264", rate=25, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p10le"
        ramp = np.linspace(20000, 21000, 64).round().astype(np.uint16)  # four levels of 8 bits
        rgb = np.broadcast_to(ramp[None, :, None], (64, 64, 3))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb48le")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        made.mux(video.encode(frame))
        made.mux(video.encode(None))
    seen = []
    upscale_video(lambda rgb, size: seen.append(rgb) or twice(rgb), doubled, source, tmp_path / "b.mp4")
    assert seen[0].dtype == np.uint16
    assert len(np.unique(seen[0][..., 1])) > 8
    frame = probe(tmp_path / "b.mp4")["frames"][0]
    assert frame.format.name == "yuv420p10le"
    levels = frame.to_ndarray(format="rgb48le")[..., 1].astype(int)
    assert np.abs(levels[32] - ramp.repeat(2)).max() < 257


@pytest.mark.parametrize("rotation", [90, -90, 180])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rotation_is_kept(rotation, suffix, tmp_path):
    source = clip(tmp_path / f"a.{suffix}", rotation=rotation)
    upscale_video(twice, doubled, source, tmp_path / f"b.{suffix}")
    before, after = (
        probe(source)["frames"][0].rotation,
        probe(tmp_path / f"b.{suffix}")["frames"][0].rotation,
    )
    assert before % 360 == after % 360 == rotation % 360


def test_pixel_aspect_ratio_is_kept(tmp_path):
    source = clip(tmp_path / "a.mp4", sample_aspect_ratio=Fraction(4, 3))
    upscale_video(twice, doubled, source, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as given:
        assert given.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_odd_size_is_kept(tmp_path):
    source = clip(tmp_path / "a.mp4", size=(33, 21), pixels="yuv444p")
    sizes = upscale_video(
        lambda rgb, size: rgb.repeat(3, 0).repeat(3, 1), lambda w, h: (3 * w, 3 * h), source, tmp_path / "b.mp4"
    )
    assert sizes == ((33, 21), (99, 63))
    assert probe(tmp_path / "b.mp4")["size"] == (99, 63)


def test_chapters_and_subtitles_are_kept(tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(clip(tmp_path / "plain.mkv"))) as given, av.open(str(source), "w") as made:
        video = made.add_stream_from_template(given.streams.video[0])
        text = made.add_mux_stream("subrip")
        text.metadata["language"] = "ger"
        made.set_chapters(
            [{"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
        )
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = video
                made.mux(packet)
        line = av.Packet(b"Hello")
        line.pts = line.dts = 100
        line.duration, line.time_base, line.stream = 200, Fraction(1, 1000), text
        made.mux(line)
    upscale_video(twice, doubled, source, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as given:
        assert [chapter["metadata"]["title"] for chapter in given.chapters()] == ["One"]
        text = given.streams.subtitles[0]
        assert text.metadata["language"] == "ger"
        assert [bytes(p) for p in given.demux(text) if p.size] == [b"Hello"]


def test_default_audio_track_is_kept(tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(clip(tmp_path / "plain.mkv"))) as given, av.open(str(source), "w") as made:
        copies = [made.add_stream_from_template(given.streams[i]) for i in (0, 1, 1)]
        copies[1].disposition, copies[2].disposition = 0, av.stream.Disposition.default
        for packet in given.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                made.mux(packet)
    upscale_video(twice, doubled, source, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as given:
        assert [bool(s.disposition & av.stream.Disposition.default) for s in given.streams.audio] == [False, True]


def test_8_bit_codec_reduces_to_8_bits_with_a_warning(tmp_path, caplog):
    clip(tmp_path / "a.mkv", pixels="yuv420p10le", sound=None)
    upscale_video(twice, doubled, tmp_path / "a.mkv", tmp_path / "b.webm")
    name = probe(tmp_path / "b.webm")["frames"][0].format.name
    deep = "yuv420p10le" in [one.name for one in av.Codec("libvpx-vp9", "w").video_formats]
    assert name == ("yuv420p10le" if deep else "yuv420p")
    assert ("supports 8 bits here" in caplog.text) != deep


def test_truncated_video_is_reported_as_damaged(tmp_path, caplog):
    whole = clip(tmp_path / "a.mkv", size=(320, 240), sound=None).read_bytes()
    upscale_video(twice, doubled, tmp_path / "a.mkv", tmp_path / "whole.mkv")
    assert "damaged" not in caplog.text
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    upscale_video(twice, doubled, tmp_path / "cut.mkv", tmp_path / "b.mkv")
    assert "cut.mkv: damaged? Only " in caplog.text


def test_failure_leaves_no_file(tmp_path):
    (tmp_path / "damaged.mkv").write_bytes(b"no video" * 99)
    clip(tmp_path / "a.mkv")
    calls = []

    def fail(rgb, size):
        calls.append(rgb)
        if len(calls) == 3:
            raise InputError("not enough memory")
        return twice(rgb)

    for name, target, message in (
        ("damaged.mkv", "b.mkv", "damaged.mkv: cannot be read as a video"),
        ("a.mkv", "b.webm", "'webm' format does not support 'aac' codec.*; try the suffix .mkv"),
        ("a.mkv", "b.mkv", "a.mkv: not enough memory"),
    ):
        with pytest.raises(InputError, match=message):
            upscale_video(fail, doubled, tmp_path / name, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "damaged.mkv"]


def test_audio_file_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as made:
        audio = made.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        made.mux(audio.encode(frame))
        made.mux(audio.encode(None))
    with pytest.raises(InputError, match="contains no video"):
        upscale_video(twice, doubled, tmp_path / "a.mkv", tmp_path / "b.mkv")


def test_command_recognises_videos(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clip(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"")
    words = [tmp_path, "-c", trained, "-o", tmp_path / "out", "--device", "cpu"]
    assert main([str(word) for word in words]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x2.mp4"]
    after = probe(tmp_path / "out" / "a_x2.mp4")
    assert after["size"] == (128, 96)
    assert after["sound"] == probe(tmp_path / "a.mp4")["sound"]
    assert "a_x2.mp4, 128x96" in caplog.text
    assert "bad.mp4: cannot be read as a video" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("rotation", "option", "shown"),
    [
        (0, ["--to", "150x"], (150, 114)),  # 150x112.5, rounded up to even sides
        (90, ["--to", "x150"], (114, 150)),
        (90, ["--factor", "1.5"], (72, 96)),
    ],
)
def test_videos_reach_a_size_as_players_show_them(rotation, option, shown, trained, tmp_path):
    clip(tmp_path / "a.mkv", rotation=rotation)
    words = [tmp_path / "a.mkv", "-c", trained, "-o", tmp_path / "b.mkv", "--device", "cpu", *option]
    assert main([str(word) for word in words]) == 0
    frame = probe(tmp_path / "b.mkv")["frames"][0]
    assert ((frame.height, frame.width) if rotation else (frame.width, frame.height)) == shown
    assert frame.format.name == "yuv420p"


def test_size_and_frames_are_read_without_decoding(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        size, frames = size_and_frames(clip(tmp_path / name))
        assert size == (64, 48)
        assert frames == pytest.approx(len(TIMES), abs=4)  # of a variable rate; Matroska has only the duration
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.mp4: cannot be read as a video"):
        size_and_frames(tmp_path / "a.mp4")


def test_missing_package_is_one_line(tmp_path, monkeypatch, trained, caplog):
    clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    words = [tmp_path / "a.mp4", "-c", trained, "-o", tmp_path / "out", "--device", "cpu"]
    assert main([str(word) for word in words]) == 1
    assert (
        caplog.records[-1].getMessage().endswith("videos need PyAV: pip install 'sr_lightning[video]', or 'av>=18,<20'")
    )


def test_damaged_frames_and_metadata_are_those_of_the_input(tmp_path):
    whole = clip(tmp_path / "a.mp4").read_bytes()
    start = whole.index(b"mdat") + 4
    spoilt = whole[:start] + bytes(len(whole[start : start + 4000])) + whole[start + 4000 :]
    for name, content, message in (
        ("frames.mp4", spoilt, r"frames.mp4: is damaged \(Invalid data"),
        ("title.mp4", whole.replace(b"A clip", b"A \xff\xfeip"), "title.mp4: is damaged, or has metadata that are not"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            upscale_video(twice, doubled, tmp_path / name, tmp_path / "b.mkv")
        assert not (tmp_path / "b.mkv").exists()
