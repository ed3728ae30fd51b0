"""The page, of Gradio's components. Import it after `prepare_environment`."""

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from sr_lightning.app import BICUBIC
from sr_lightning.app.enlarging import (
    FACTORS,
    Networks,
    Stopped,
    Visit,
    check_size,
    enlarge_photo,
    factor_for,
    preview,
)
from sr_lightning.errors import InputError
from sr_lightning.images.files import image_size

MAX_UPLOAD = "512mb"
DELETE = (3600, 86400)  # seconds: how often, and after how long, Gradio deletes files of a page that stays open
CSS = """
main {width: 100%; max-width: 1440px !important; margin: 0 auto !important}
#status {min-height: 3.5rem}
#status .error {display: none}  /* Gradio's word for an event cancelled while it waits */
#status .wrong {color: #b91c1c; overflow-wrap: anywhere}
"""
ABOUT = """# Enlarge photos

Results have at most {limit} million pixels. Photos and results are deleted when this page is closed."""


@contextmanager
def open_page(networks: Networks, folder: Path, host: str, port: int, max_pixels: int) -> Iterator[str]:
    """Serve the page within the block.

    Args:
        networks: To choose from.
        folder: Of all files; GRADIO_TEMP_DIR.
        host: Address to bind to.
        port: A free one.
        max_pixels: Of a result.

    Returns:
        The address.
    """
    visits: dict[str, Visit] = {}
    blocks = page(networks, folder, visits, max_pixels)
    fonts = ["system-ui", "sans-serif"]  # Gradio's own are loaded from elsewhere
    _, address, _ = blocks.queue(api_open=False).launch(
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        inbrowser=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        server_name=host,
        server_port=port,
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Default(font=fonts, font_mono=["monospace"]),
        css=CSS,
    )
    try:
        yield address
    finally:
        for visit in visits.values():
            visit.close()
        blocks.close(verbose=False)


def page(networks: Networks, folder: Path, visits: dict[str, Visit], max_pixels: int) -> gr.Blocks:
    """Build the page; `visits` is filled with the open ones, by Gradio's session hash."""

    def visit_of(request: gr.Request) -> Visit:
        if request.session_hash not in visits:
            visits[request.session_hash] = Visit(folder)
        return visits[request.session_hash]

    def receive(file: dict, request: gr.Request) -> tuple:
        """Refuse what is no photo, or too large, when it is dropped; show others, and note the file."""
        path = Path(file["path"])
        visit_of(request).received.add(path)
        try:
            check_size(path, min(FACTORS), max_pixels)
            height, width = image_size(path)
            shown = preview(path)
        except InputError as error:
            return None, None, wrong(error, path), gr.update(visible=False)
        text = f"{html.escape(path.name)}: {width}x{height} pixels"
        return gr.skip() if shown == path else str(shown), str(path), text, gr.update(visible=False)

    def begin(request: gr.Request) -> tuple:
        visit_of(request).begin()
        return "", gr.update(interactive=False), gr.update(interactive=True)

    def enlarge(
        shown: dict | None,
        file: str | None,
        names: list[str],
        factor: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio finds it by its default
    ) -> tuple:
        if shown is None or file is None:
            return wrong("Drop a photo first"), *[gr.skip()] * 6
        path, visit = Path(file), visit_of(request)

        def show(share: float, name: str) -> None:
            progress(share, desc=name)

        try:
            chosen = factor_for(networks, names, factor or None)
            files = enlarge_photo(path, networks, names, chosen, visit, max_pixels, show)
        except (InputError, MemoryError, OSError) as error:
            return wrong(error, path), *[gr.skip()] * 6
        except Stopped:
            return "Cancelled", *[gr.skip()] * 6
        after = names[0]
        results = {name: str(file) for name, file in files.items()}
        height, width = image_size(files[after])
        return (
            f"{html.escape(path.name)} x{chosen}: {width}x{height} pixels",
            gr.update(visible=True),
            results,
            gr.update(choices=list(results), value=BICUBIC),
            gr.update(choices=list(results), value=after),
            *compare(BICUBIC, after, results),
        )

    def compare(before: str, after: str, results: dict[str, str]) -> tuple:
        label = f"Download {after} (PNG)"
        return gr.update(value=(results[before], results[after])), gr.update(label=label, value=results[after])

    def cancel(request: gr.Request) -> tuple:
        visit_of(request).stop.set()
        return "Cancelled", *ready()

    def ready() -> tuple:
        return gr.update(interactive=True), gr.update(interactive=False)

    def leave(request: gr.Request) -> None:
        if visit := visits.pop(request.session_hash, None):
            visit.close(list(visits.values()))

    about = ABOUT.format(limit=f"{max_pixels / 1e6:g}")
    with gr.Blocks(title="Enlarge photos", analytics_enabled=False, delete_cache=DELETE, fill_width=True) as blocks:
        original, results = gr.State(None), gr.State({})  # the file of the photo; those of its enlargements
        gr.Markdown(about)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Image(
                    label="Photo",
                    sources=["upload", "clipboard"],
                    height=320,
                    buttons=[],
                    placeholder="Drop a photo here, or click to choose or paste one",
                )
                names = gr.CheckboxGroup(networks.names, value=networks.names[:1], label="Networks")
                factors = [("as trained", 0), *((f"x{factor}", factor) for factor in FACTORS)]
                factor = gr.Radio(factors, value=0, label="Factor")
                with gr.Row():
                    start = gr.Button("Enlarge", variant="primary", min_width=100)
                    stop = gr.Button("Cancel", interactive=False, min_width=100)
                status = gr.HTML("", elem_id="status", padding=False)
            with gr.Column(scale=5, min_width=300, visible=False) as comparison:
                with gr.Row():
                    before = gr.Dropdown([BICUBIC], label="Left", min_width=100)
                    after = gr.Dropdown([BICUBIC], label="Right", min_width=100)
                slider = gr.ImageSlider(
                    show_label=False, elem_id="divider", interactive=False, max_height=700, buttons=["fullscreen"]
                )
                gr.Markdown("Zoom with the mouse wheel or two fingers.")
                download = gr.DownloadButton("Download", variant="primary")

        def on(trigger: object, function: object, inputs: Sequence = (), outputs: Sequence = (), **options: object):
            return trigger(function, list(inputs), list(outputs), api_visibility="private", **options)

        quick = {"queue": False, "show_progress": "hidden"}
        unopened = {"preprocess": False}  # Gradio would decode the file before it can be refused
        on(photo.upload, receive, [photo], [photo, original, status, comparison], **quick, **unopened)
        begun = on(start.click, begin, (), [status, start, stop], **quick)
        shown = [status, comparison, results, before, after, slider, download]
        work = on(
            begun.then,
            enlarge,
            [photo, original, names, factor],
            shown,
            concurrency_limit=1,
            show_progress="full",
            show_progress_on=status,
            **unopened,
        )
        on(work.then, ready, (), [start, stop], **quick)
        on(stop.click, cancel, (), [status, start, stop], cancels=[work], **quick)
        for choice in (before, after):
            on(choice.input, compare, [before, after, results], [slider, download], **quick)
        blocks.unload(leave)
    return blocks


def wrong(error: object, photo: Path | None = None) -> str:
    """Return a message as HTML, with the photo's name in place of its path."""
    text = str(error) or type(error).__name__
    text = text.replace(str(photo), photo.name) if photo else text
    return f'<p class="wrong" role="alert">{html.escape(text)}</p>'
