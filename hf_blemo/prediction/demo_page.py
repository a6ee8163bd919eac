"""A local page for trying clips: drop or record one, see its blend. It loads nothing from the internet."""

import base64
import json
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial, reduce
from html import escape
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hf_blemo.errors import USER_ERRORS, check_extra, one_line, printable, say
from hf_blemo.prediction.clip_report import result_html
from hf_blemo.prediction.clip_words import blend_words, limits, names_of
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import EMOTIONS

if TYPE_CHECKING:
    import gradio

TITLE = "Blended emotion recognition"
OTHER_TITLE = "Clip recognition"
SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".oga", ".m4a", ".aac", ".opus", ".wma")

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_FIXED_FONTS = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# Clips show people: every ten minutes, uploads older than an hour are deleted.
_DELETE_CACHE = (600, 3600)
_HINT = "Drop or record a clip, then press Recognise. The result appears here."
_NO_CLIP = "There is no clip yet: drop or record one, then press Recognise."
Recognise = Callable[[str], Mapping[str, Any] | Sequence[Mapping[str, Any]]]
_LIVE = """() => {
  const told = document.getElementById("demo-told");
  told.setAttribute("role", "status");
  told.setAttribute("aria-live", "polite");
  told.setAttribute("aria-atomic", "true");
}"""
_STYLES = """
<style>
#demo-told {
  position: absolute; width: 1px; height: 1px; overflow: hidden !important; clip-path: inset(50%); white-space: nowrap;
}
.demo-plain, .demo-plain .html-container { padding: 0 !important; }
#demo-video video { max-height: 300px; }
.demo-head h1 { font-size: 28px; line-height: 1.2; font-weight: 700; letter-spacing: -0.02em; margin: 8px 0 6px; }
.demo-head p { margin: 0; font-size: 14px; line-height: 1.5; color: var(--body-text-color); max-width: 80ch; }
.demo-head b { font-weight: 600; overflow-wrap: anywhere; }
.demo-hint {
  color: var(--body-text-color); font-size: 15px; padding: 72px 20px; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: 12px;
}
.demo-shown {
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); border-radius: 12px;
  padding: clamp(14px, 3vw, 26px);
}
.demo-shown + .demo-shown { margin-top: 14px; }
.demo-download {
  display: inline-block; padding: 6px 14px; border-radius: 8px; border: 1px solid var(--border-color-primary);
  color: var(--body-text-color); font-size: 14px; font-weight: 600; text-decoration: none;
}
.demo-download:hover { background: var(--background-fill-secondary); }
</style>
"""


def make_demo(
    recognise: Recognise,
    model: str,
    examples: Sequence[str] = (),
    names: Sequence[str] = EMOTIONS,
) -> "gradio.Blocks":
    """Builds the page, where a visitor drops, records or chooses a clip and sees its result.

    It recognises one clip at a time; others wait in a queue.

    Args:
        recognise: path of a video or sound file -> its result, as `clip_report.result_html` takes it, or those of its
            persons. An error of `errors.USER_ERRORS` that it raises is shown in one line.
        model: name of the model.
        examples: paths of clips that the page offers.
        names: what the model predicts, in order.
    """
    gr = _gradio()
    sounds = [str(path) for path in examples if Path(path).suffix.lower() in SOUND_SUFFIXES]
    videos = [str(path) for path in examples if str(path) not in sounds]

    def offer(paths: Sequence[str], clip: Any) -> None:
        """Buttons of examples, which have their names, as pictures alone tell a screen reader nothing."""
        if paths:
            names = [Path(path).name for path in paths]
            gr.Examples([[path] for path in paths], [clip], cache_examples=False, example_labels=names)

    show = partial(_shown, recognise)

    title = TITLE if tuple(names) == EMOTIONS else OTHER_TITLE
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_DELETE_CACHE) as demo:
        head = f"<h1>{title}</h1><p>Model <b>{escape(printable(model))}</b></p><p>{escape(limits(names))}</p>"
        gr.HTML(f'{_STYLES}<div class="demo-head">{head}</div>', elem_classes="demo-plain", apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                with gr.Tab("Video"):
                    video = gr.Video(label="Clip with picture and sound", elem_id="demo-video")
                    video_button = gr.Button("Recognise", variant="primary", elem_id="demo-video-button")
                    offer(videos, video)
                with gr.Tab("Sound only"):
                    sound = gr.Audio(label="Clip without picture", type="filepath", buttons=[], elem_id="demo-sound")
                    sound_button = gr.Button("Recognise", variant="primary", elem_id="demo-sound-button")
                    offer(sounds, sound)
            with gr.Column(scale=3, min_width=320):
                shown = gr.HTML(
                    _hint(_HINT), elem_classes="demo-plain", apply_default_css=False, elem_id="demo-result"
                )
                told = gr.HTML("", elem_id="demo-told", apply_default_css=False)
                with gr.Accordion("Result as JSON", open=False, elem_id="demo-json"):
                    download = gr.HTML("", elem_classes="demo-plain", apply_default_css=False)
                    raw = gr.JSON(show_label=False, open=True)
        # Two clips at once would share the cores, and both results would come later.
        options = {"concurrency_limit": 1, "concurrency_id": "recognise", "show_progress_on": shown}
        video_button.click(show, [video], [shown, download, raw, told], api_name="recognise_video", **options)
        sound_button.click(show, [sound], [shown, download, raw, told], api_name="recognise_sound", **options)
        # A live region has to be there before its text changes.
        demo.load(None, js=_LIVE)
    return demo


def launch_demo(
    demo: "gradio.Blocks",
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> str:
    """Serves a page on this machine, and returns its address; nothing is published, counted or loaded from elsewhere.

    It answers browsers that ask for an IP address, `localhost`, `host` or this machine by its name: a page from
    elsewhere whose name leads here is not let in.

    Args:
        host: interface to listen on; by default only this machine reaches the page.
        port: default: the first free port from 7860.
        block: whether to return only after Ctrl+C or `demo.close()`.
    """
    check_free(host, port)
    gr = _gradio()
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font(name) for name in _FIXED_FONTS],
    )
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        app_kwargs={"middleware": [_KnownHosts.middleware(host)]},
        inbrowser=open_browser,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        theme=theme,
        footer_links=[],
        # Results of people's faces are not kept in the browser.
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    if block:
        say(f"Serving {str(demo.title).lower()} at {address} until Ctrl+C")
        demo.block_thread()
    return address


class _KnownHosts:
    """Lets in only requests for names of this machine, as those for any other come from a page of somebody else."""

    def __init__(self, app: Any, names: Collection[str]):
        self.app, self.names = app, names

    @classmethod
    def middleware(cls, host: str) -> Any:
        from starlette.middleware import Middleware

        return Middleware(cls, names={"localhost", host.lower(), socket.gethostname().lower()})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        app = self.app
        if scope["type"] in ("http", "websocket"):
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not self._knows(hosts[0]):
                app = PlainTextResponse("This page does not answer for another host.", status_code=421)
        await app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False


def check_free(host: str, port: int | None) -> None:
    """Checks that a page can be served: refuses a port that is taken and a host that is not one of this machine."""
    try:
        socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        where = host if port is None else f"{host}, port {port}"
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{where}: cannot serve there ({reason}), expected a free port of this machine") from None


def _gradio() -> ModuleType:
    # Gradio reads this on import and when it builds a page; either would look up its version on the internet.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    check_extra("demo")
    import gradio

    return gradio


def _shown(recognise: Recognise, path: str | None) -> tuple[str, str, Any, str]:
    """The result for reading, its download, its raw form, and what a screen reader says of it."""
    if path is None:
        return _hint(_NO_CLIP), "", None, _told(_NO_CLIP)
    try:
        found = recognise(path)
    except USER_ERRORS as error:
        found = {"clip": Path(path).name, "error": one_line(error)}
    folders = [os.path.dirname(path), os.path.dirname(os.path.realpath(path))]
    results = [_without_folders(one, folders) for one in ([found] if isinstance(found, Mapping) else found)]
    raw = [{name: value for name, value in result.items() if name != "thumbnails"} for result in results]
    words = []
    for result in results:
        if "error" in result:
            words.append(f"failed: {result['error']}")
        else:
            said = f"{result['clip']}: {blend_words(result['blend'], names_of([result]))}"
            words.append(". ".join([said, *result.get("notes", ())]))
    shown = "".join(f'<div class="demo-shown">{result_html(result)}</div>' for result in results)
    one_or_all = raw[0] if len(raw) == 1 else raw
    return shown, _download(one_or_all, raw[0]["clip"]), one_or_all, _told(". ".join(words))


def _without_folders(value: Any, folders: Sequence[str]) -> Any:
    """A result without the server's own folders of an upload, which are no business of the visitor."""
    if isinstance(value, str):
        return reduce(lambda text, folder: text.replace(f"{folder}{os.sep}", ""), folders, value)
    if isinstance(value, Mapping):
        return {name: _without_folders(entry, folders) for name, entry in value.items()}
    return [_without_folders(entry, folders) for entry in value] if isinstance(value, list) else value


def _hint(text: str) -> str:
    return f'<p class="demo-hint">{escape(text)}</p>'


def _told(text: str) -> str:
    """A text for the live region, which only speaks where it changes: hence the time."""
    return f"<p>{datetime.now():%H:%M:%S}, {escape(printable(text))}</p>"


def _download(result: Any, clip: str) -> str:
    """A link that contains the result, so that the server keeps no file of it."""
    content = base64.b64encode((json.dumps(result, indent=2) + "\n").encode()).decode("ascii")
    name = escape(f"{Path(printable(clip)).stem or 'result'}.json", quote=True)
    address = f"data:application/json;base64,{content}"
    return f'<a class="demo-download" download="{name}" href="{address}">Download {name}</a>'
