"""Start the page: `python -m examples.demo [--model FOLDER] [--dtype bfloat16] [--device-map auto] [--port N]`."""

import argparse
import sys

import gradio as gr
from transformers import AutoModelForImageTextToText, AutoProcessor, logging

from examples.demo.page import CSS, ROOT, Page


def main() -> int:
    """Load the checkpoint, serve the page, print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="checkpoint folder or Hub repository (default: the embedded)")
    parser.add_argument("--dtype", default="auto", help="type of the weights, such as bfloat16 (default: as saved)")
    parser.add_argument("--device-map", default="auto", help="where the weights go (default: auto)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (0.0.0.0: to the whole network)")
    parser.add_argument("--port", type=int, help="port to serve (default: the first free one from 7860)")
    options = parser.parse_args()
    logging.disable_progress_bar()

    # The embedded checkpoint has no code of its own: Transformers takes it from the repository's root.
    is_embedded = (ROOT / options.model).resolve() == ROOT / "tiny"
    folder, where = (ROOT, {"subfolder": "tiny"}) if is_embedded else (options.model, {})
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, **where)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=True, dtype=options.dtype, device_map=options.device_map, **where
    )
    name = f"{options.model} · {model.num_parameters() / 1e6:,.0f} M · {str(model.dtype).removeprefix('torch.')}"
    page = Page(model.eval(), processor, name).build()
    page.launch(
        server_name=options.host,
        server_port=options.port,
        allowed_paths=[str(ROOT / "examples")],
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
