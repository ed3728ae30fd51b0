"""Upscaling of videos frame by frame; sound and timestamps are unchanged."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sr_lightning.errors import InputError
from sr_lightning.utils.atomic_files import replacing

log = logging.getLogger(__name__)

CONTAINERS = {".m4v": "mp4", ".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}
# The matrix between RGB and YCbCr: number in FFmpeg's frames -> number in swscale
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
BT709, BT601 = 1, 6
MIN_DECODED_SHARE = 0.9  # of the duration; a video with less is probably damaged
# Metadata of the file, not of its content
CONTAINER_TAGS = (
    *("encoder", "major_brand", "minor_version", "compatible_brands"),
    *("duration", "vendor_id", "bps", "rotate"),
)


def upscale_video(
    enlarge: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
    size_of: Callable[[int, int], tuple[int, int]],
    source: Path,
    target: Path,
    progress: Callable[[float], Any] = lambda share: None,
    pool: Executor | None = None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Upscale the frames of a video, one at a time, and copy sound and subtitles.

    Frames are encoded as H.264, or VP9 in WebM, with 8 or 10 bits and at a quality without visible loss. (Not HEVC:
    libx265 4.2 writes out of bounds if a frame is narrower than about 60 pixels.) Timestamps, colour matrix and range,
    rotation, pixel aspect ratio, chapters and metadata are those of the input.

    Args:
        enlarge: RGB frame (H, W, 3), uint8 or uint16, and width and height of the result -> that, of the same type.
        size_of: Width and height of a frame, as players show it -> of the enlarged one.
        source: A file with a video stream; of several, the one that FFmpeg ranks best is upscaled.
        target: Its suffix, one of CONTAINERS, chooses the container. Written completely or not at all.
        progress: Called after each frame with its share of the work.
        pool: Enlarges a frame while the next one is decoded and the one before is encoded. None: one after the other.

    Returns:
        Width and height of the frames, and of the enlarged ones.

    Raises:
        InputError: PyAV is missing; no video stream, a damaged file, or streams that the container does not support.
    """

    def begin(*frame: Any) -> Callable[[], np.ndarray]:
        return partial(enlarge, *frame) if pool is None else pool.submit(enlarge, *frame).result

    av = _av()
    with (
        _explained(av, source, target),
        _first_frame(av, source) as first,
        av.open(str(source)) as given,
        replacing(target) as temporary,
        av.open(str(temporary), "w", format=CONTAINERS[target.suffix.lower()]) as made,
    ):
        video = given.streams.best("video")
        video.thread_type = "AUTO"
        recoder = _Recoder(av, begin, _stored_size(size_of, first), first, target, 0 if pool is None else 1)
        copies = {}
        for stream in given.streams:
            if stream is video:
                recoder.add_to(made, video)
            elif stream.type in ("audio", "subtitle"):
                copies[stream] = _copied(made, stream)
            else:
                log.warning("%s: stream %d (%s) is left out", source, stream.index, stream.type)
        made.metadata.update(_metadata(given))
        made.set_chapters(given.chapters())
        done = 0.0
        packets = given.demux(video, *copies)
        while (packet := _read(av, next, packets, None)) is not None:
            if packet.stream is video:
                for frame in _read(av, packet.decode):
                    made.mux(recoder.packets(frame))
                    share = max(_share(frame, given), done)
                    progress(share - done)
                    done = share
            elif packet.size:  # an empty packet marks the end
                packet.stream = copies[packet.stream]
                made.mux(packet)
        made.mux(recoder.packets(None))
    if 0 < done < MIN_DECODED_SHARE:  # 0: the file does not state its duration
        log.warning("%s: damaged? Only %.0f %% of its duration could be decoded", source, 100 * done)
    return (first.width, first.height), recoder.size


def size_and_frames(source: Path) -> tuple[tuple[int, int], float]:
    """Return width and height of a video's frames and their number, 0 if the file does not tell.

    Raises:
        InputError: PyAV is missing, or the file is damaged or no video.
    """
    av = _av()
    with _explained(av, source, source), av.open(str(source)) as given:
        video = given.streams.best("video")
        if video is None:
            raise InputError("contains no video")
        frames = video.frames or float((given.duration or 0) / 1e6 * (video.average_rate or 0))
        return (video.width, video.height), frames


def _stored_size(size_of: Callable[[int, int], tuple[int, int]], frame: Any) -> tuple[int, int]:
    """Return the size of an enlarged frame as stored; players turn it as they turn the frame."""
    if frame.rotation % 180:
        width, height = size_of(frame.height, frame.width)
        return height, width
    return size_of(frame.width, frame.height)


class _Recoder:
    """Converter of the frames of one stream into the packets of another.

    Args:
        av: PyAV.
        begin: Takes what `enlarge` of `upscale_video` does, and returns a function that waits for the enlarged frame.
        size: Width and height of enlarged frames.
        first: The stream's first frame; all others must have its size and pixel format.
        target: Its suffix chooses the codec.
        ahead: Frames that are begun before an earlier one is waited for.
    """

    def __init__(
        self, av: ModuleType, begin: Callable, size: tuple[int, int], first: Any, target: Path, ahead: int
    ) -> None:
        self.av, self.begin, self.size, self.first, self.ahead = av, begin, size, first, ahead
        self.begun: deque[tuple[Any, Callable[[], np.ndarray]]] = deque()  # frames that are being enlarged
        deep = any(component.bits > 8 for component in first.format.components)
        self.rgb = "rgb48le" if deep else "rgb24"
        # Halved chroma is still finer than the input's; an odd side cannot be halved.
        even = size[0] % 2 == size[1] % 2 == 0
        if target.suffix.lower() == ".webm":
            self.codec = "libvpx-vp9"
            self.options = {"crf": "18", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        else:
            self.codec, self.options = "libx264", {"crf": "16"}
        self.pixel_format = ("yuv420p" if even else "yuv444p") + ("10le" if deep else "")
        if deep and self.pixel_format not in [one.name for one in av.Codec(self.codec, "w").video_formats]:
            log.warning("%s: its codec supports 8 bits here, not 10; .mkv supports 10", target)
            self.pixel_format = self.pixel_format.removesuffix("10le")
        if any(component.is_alpha for component in first.format.components):
            log.warning("%s: transparency is left out", target)
        # Players guess a missing matrix from the height, which changes: always write it
        self.matrix = first.colorspace if first.colorspace in MATRICES else BT709 if first.height >= 720 else BT601
        reformatter = av.video.reformatter
        self.range = int(reformatter.ColorRange.JPEG if first.color_range == 2 else reformatter.ColorRange.MPEG)
        flags = reformatter.Interpolation
        self.exact = flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
        self.last: int | None = None  # timestamp of the last frame
        self.durations: dict[int, int] = {}  # of the frames in the encoder, by timestamp

    def add_to(self, made: Any, video: Any) -> None:
        """Open the stream to write, with the settings of the one that is read."""
        first = self.first
        self.stream = stream = made.add_stream(self.codec, rate=video.average_rate, options=self.options)
        context = stream.codec_context
        stream.width, stream.height = self.size
        stream.pix_fmt, context.time_base, stream.time_base = self.pixel_format, video.time_base, video.time_base
        context.colorspace, context.color_range = self.matrix, self.range
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        if video.sample_aspect_ratio:
            context.sample_aspect_ratio = video.sample_aspect_ratio
        if first.rotation:
            stream.set_display_rotation(first.rotation)
        stream.metadata.update(_metadata(video))
        stream.disposition = video.disposition

    def packets(self, frame: Any | None) -> list:
        """Encode a frame and return the packets that are ready; None: the remaining ones, after the last frame."""
        if frame is not None:
            self.begun.append((frame, self.begin(self.pixels(frame), self.size)))
        packets = []
        while len(self.begun) > (0 if frame is None else self.ahead):
            earlier, enlarged = self.begun.popleft()
            packets += self.encoded(self.recoded(earlier, enlarged()))
        return packets + (self.encoded(None) if frame is None else [])

    def encoded(self, sr: Any | None) -> list:
        """Encode an enlarged frame; None: end the stream."""
        if sr is not None:
            self.durations[sr.pts] = sr.duration
        packets = self.stream.encode(sr)
        for packet in packets:  # the encoder sets the average duration
            packet.duration = self.durations.pop(packet.pts, None) or packet.duration
        return packets

    def pixels(self, frame: Any) -> np.ndarray:
        """Return a frame as RGB (H, W, 3)."""
        first = self.first
        if (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name):
            raise InputError(
                f"its frames change from {first.width}x{first.height} {first.format.name} to "
                f"{frame.width}x{frame.height} {frame.format.name}; convert them to one format first"
            )
        frame.colorspace = self.matrix
        return frame.to_ndarray(format=self.rgb, interpolation=self.exact)

    def recoded(self, frame: Any, enlarged: np.ndarray) -> Any:
        """Return an enlarged RGB image as the frame to encode, with the properties of the one it was made of."""
        sr = self.av.VideoFrame.from_ndarray(enlarged, format=self.rgb).reformat(
            format=self.pixel_format,
            dst_colorspace=MATRICES[self.matrix],
            dst_color_range=self.range,
            interpolation=self.exact,
        )
        sr.colorspace, sr.color_range = self.matrix, self.range
        sr.color_primaries, sr.color_trc = frame.color_primaries, frame.color_trc
        sr.time_base, sr.duration = frame.time_base, frame.duration
        sr.pts = self._time_of(frame)
        return sr

    def _time_of(self, frame: Any) -> int:
        """Return the timestamp of a frame; the next free one if it is missing or not after the previous one."""
        pts = frame.pts
        if self.last is not None and (pts is None or pts <= self.last):
            pts = self.last + (max(frame.duration, 1) if pts is None else 1)
        self.last = pts or 0
        return self.last


def _av() -> ModuleType:
    try:
        import av
        import av.video.reformatter
    except ImportError:
        raise InputError("videos need PyAV: pip install 'sr_lightning[video]', or 'av>=18,<20'") from None
    return av


@contextmanager
def _explained(av: ModuleType, source: Path, target: Path) -> Iterator[None]:
    """Turn FFmpeg's errors into an InputError that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except UnicodeDecodeError as error:  # PyAV reads the metadata of the input as UTF-8
        raise InputError(f"{source}: is damaged, or has metadata that are not UTF-8 ({error})") from error
    except (av.FFmpegError, ValueError) as error:
        if str(source) == getattr(error, "filename", None):
            raise InputError(f"{source}: cannot be read as a video ({error.strerror})") from error
        if target.suffix.lower() != ".mkv":
            way_out = "; try the suffix .mkv"
        elif isinstance(error, av.FFmpegError):
            way_out = ""
        else:  # raised by PyAV for a codec
            way_out = "; convert its sound first: ffmpeg -i INPUT -c:v copy -c:a aac OUTPUT.mkv"
        raise InputError(f"{source}: cannot be converted to {target.name} ({error}){way_out}") from error


@contextmanager
def _first_frame(av: ModuleType, source: Path) -> Iterator[Any]:
    """Decode the first frame, whose size and format are needed before anything is written."""
    with av.open(str(source)) as given:
        if given.streams.best("video") is None:
            raise InputError("contains no video")
        frame = _read(av, next, given.decode(given.streams.best("video")), None)
        if frame is None:
            raise InputError("none of its frames can be decoded")
        yield frame


def _read(av: ModuleType, read: Callable, *arguments: Any) -> Any:
    """Call a function that reads from the input; its errors are those of the input, not of the result."""
    try:
        return read(*arguments)
    except av.FFmpegError as error:
        raise InputError(f"is damaged ({error.strerror}); copy it again, or repair it with ffmpeg") from error


def _copied(made: Any, stream: Any) -> Any:
    """Add a stream to the result, for the unchanged packets of another."""
    copy = made.add_stream_from_template(stream)
    copy.metadata.update(_metadata(stream))
    copy.disposition = stream.disposition
    return copy


def _metadata(of: Any) -> dict[str, str]:
    """Return the metadata of a container or stream that also apply to the upscaled one."""
    return {
        key: text
        for key, text in of.metadata.items()
        if key.lower().partition("-")[0] not in CONTAINER_TAGS and not key.startswith(("NUMBER_OF_", "_STATISTICS"))
    }


def _share(frame: Any, given: Any) -> float:
    """Return the share of a video up to and including a frame; 0 if the file does not state its duration."""
    if frame.time is None or not given.duration:
        return 0.0
    seconds = frame.time + frame.duration * float(frame.time_base) - (given.start_time or 0) / 1e6
    return min(max(seconds / (given.duration / 1e6), 0.0), 1.0)
